"""The card index: tables of tasks and vectors, and search over vectors."""

from adapterhub.catalog._index import ExactIndex, VectorIndex
from adapterhub.catalog._records import Catalog, Changes, TaskRecord, TaskVectors
from adapterhub.catalog._sqlite import SqliteCatalog

__all__ = ["Catalog", "Changes", "ExactIndex", "SqliteCatalog", "TaskRecord", "TaskVectors", "VectorIndex"]
