"""The gallery: embeddings in shards of vectors under lasting ids, searched exactly.

`build_gallery` makes one, `open` opens one, `verify_gallery` checks one.
"""

from pipelines.gallery.build import Build, BuiltShard, ShardJob, build_gallery, build_shard
from pipelines.gallery.manifest import GalleryManifest
from pipelines.gallery.reranked import Reranking
from pipelines.gallery.search import Gallery, Hit, open_gallery
from pipelines.gallery.verify import verify_gallery

open = open_gallery

__all__ = [
    "Build",
    "BuiltShard",
    "Gallery",
    "GalleryManifest",
    "Hit",
    "Reranking",
    "ShardJob",
    "build_gallery",
    "build_shard",
    "open",
    "open_gallery",
    "verify_gallery",
]
