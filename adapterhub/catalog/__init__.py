"""The card index: tables of tasks and vectors, and search over vectors."""

from adapterhub.catalog._bits import BitIndex
from adapterhub.catalog._builder import Typical, building
from adapterhub.catalog._faiss import FaissIndex
from adapterhub.catalog._generation import Manifest
from adapterhub.catalog._halves import to_half, to_single
from adapterhub.catalog._index import ExactIndex, Queries, Rows, VectorIndex
from adapterhub.catalog._index_faults import index_faults
from adapterhub.catalog._open import open_catalog
from adapterhub.catalog._records import (
    Catalog,
    Changes,
    Ids,
    Scope,
    TaskRecord,
    TaskVectors,
    TaskVersion,
    VectorBlock,
    VectorChanges,
)
from adapterhub.catalog._sqlite import SqliteCatalog

__all__ = [
    "BitIndex",
    "Catalog",
    "Changes",
    "ExactIndex",
    "FaissIndex",
    "Ids",
    "Manifest",
    "Queries",
    "Rows",
    "Scope",
    "SqliteCatalog",
    "TaskRecord",
    "TaskVectors",
    "TaskVersion",
    "Typical",
    "VectorBlock",
    "VectorChanges",
    "VectorIndex",
    "building",
    "index_faults",
    "open_catalog",
    "to_half",
    "to_single",
]
