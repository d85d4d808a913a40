"""Settings that must stand before Ray is imported; this module imports nothing heavy."""

import os

LOCAL_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # one machine: listen on loopback only
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's tables, on stdout
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def prepare_environment() -> None:
    """Ready this process and the ones it starts for Ray.

    Without RAY_ADDRESS a Ray of one machine will be started: it keeps to loopback and reports
    nothing to anybody. PYTHONDONTWRITEBYTECODE is taken out, because with it every process of a
    run compiles every import again.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if "RAY_ADDRESS" not in os.environ:
        for name, value in LOCAL_SETTINGS.items():
            os.environ.setdefault(name, value)
