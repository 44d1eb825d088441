"""Indexes: embedded collections on the disk that answer sentences and pictures, behind one contract."""

from avse.index.asking import Query
from avse.index.contract import AddReport, Encoder, Hit, Skipped, StoreError
from avse.index.index import Index

__all__ = ["AddReport", "Encoder", "Hit", "Index", "Query", "Skipped", "StoreError"]
