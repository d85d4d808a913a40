"""The slow reference of the evaluation: one query, one row, one rule at a time, in float64."""

import numpy as np
import pyarrow as pa

CAMERA_RULE = ("market",)


def ordered_lists(table: pa.Table, protocol: str) -> dict[str, list[tuple[str, bool]]]:
    """For each query key the whole gallery in order, without what the protocol removes, as (key,
    right answer). Of equal scores the wrong row comes first, then the earlier one."""
    rows = table.drop_columns("embedding").to_pylist()
    raw = np.stack(table["embedding"].to_numpy(zero_copy_only=False)).astype(np.float32)
    unit = (raw / np.linalg.norm(raw.astype(np.float64), axis=1)[:, None]).astype(np.float32)
    exact = unit.astype(np.float64)
    result = {}
    for i, query in enumerate(rows):
        if query["split"] != "query":
            continue
        kept = []
        for j, row in enumerate(rows):
            if row["split"] != "gallery" or is_out(query, row, protocol):
                continue
            right = is_right(query, row)
            kept.append((-float(exact[i] @ exact[j]), right, j, row["key"]))
        result[query["key"]] = [(key, right) for _, right, _, key in sorted(kept)]
    return result


def is_right(query: dict, row: dict) -> bool:
    return (
        query["identity"] is not None
        and row["identity"] == query["identity"]
        and (row.get("role") or "normal") == "normal"
    )


def is_out(query: dict, row: dict, protocol: str) -> bool:
    if protocol == "latf_legacy":
        return False
    if row.get("role") == "junk" or row["key"] == query["key"]:
        return True
    same_camera = query.get("camera") is not None and row.get("camera") == query.get("camera")
    return protocol in CAMERA_RULE and is_right(query, row) and same_camera
