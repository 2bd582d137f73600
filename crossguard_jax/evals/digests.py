"""Hashes of rows, each made once however many systems are asked and however often it is needed."""

import hashlib

from crossguard_jax.cmai.review import content_key
from crossguard_jax.data.records import Record
from crossguard_jax.hf.trained import hashed


class Digests:
    """What tells rows from others. It keeps the records that it is asked about."""

    def __init__(self) -> None:
        self._pictures: dict[int, tuple[Record, tuple[bytes, ...]]] = {}

    def pictures(self, record: Record) -> tuple[bytes, ...]:
        """The SHA-256 of each of its pictures' files."""
        kept = self._pictures.get(id(record))
        if kept is None:
            kept = record, tuple(hashlib.sha256(image).digest() for image in record.images)
            self._pictures[id(record)] = kept
        return kept[1]

    def request(self, record: Record) -> str:
        """As `systems.store.request_key`."""
        return content_key(record.text, (digest.hex() for digest in self.pictures(record)))

    def content(self, record: Record) -> str:
        """As `hf.trained.content_hash`."""
        return hashed(record.text, self.pictures(record))

    def picture(self, record: Record) -> str:
        """What rows of the same pictures have in common; empty without any."""
        return "".join(digest.hex() for digest in self.pictures(record))
