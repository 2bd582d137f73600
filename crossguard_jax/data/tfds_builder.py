"""The TFDS builder. Imported only by ``builders``, so that TFDS is loaded when it is needed."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from crossguard_jax.data.records import Record

DESCRIPTIONS = {
    "implicit": "Harm that neither the picture nor the text shows alone, and its safe twins.",
    "explicit": "Harm that the text or the picture shows by itself.",
    "typographic": "Requests drawn as text inside the picture.",
    "benign": "Ordinary questions about ordinary pictures.",
}


class Crossguard(tfds.core.GeneratorBasedBuilder):
    """Writes records that are handed in, one TFDS configuration per source.

    Pictures are stored as the encoded bytes they came in, so that no TensorFlow is needed to write
    them and none of their bits change; a record without one stores no bytes.
    """

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {"2.0.0": "Several pictures a record."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=text) for name, text in DESCRIPTIONS.items()
    ]

    def __init__(self, *, splits: Mapping[str, Iterable[Record]] | None = None, **kwargs: Any):
        """Takes the records of each split beside what every TFDS builder takes."""
        self._records = dict(splits or {})
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = tfds.features.FeaturesDict(
            {
                "id": text(),
                "image": tfds.features.Image(),
                # Without TensorFlow, bytes in a sequence are read as they are only from a text.
                "more_images": tfds.features.Sequence(text()),
                "text": text(),
                "label": text(),
                "category": text(),
                "source": text(),
                "provenance": text(doc="a JSON object of strings"),
            }
        )
        # The order of the records is the reader's business: evaluation keeps it.
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        return {name: self._generate_examples(rows) for name, rows in self._records.items()}

    def _generate_examples(self, records: Iterable[Record]) -> Iterator[tuple[str, dict]]:
        for record in records:
            yield (
                record.id,
                {
                    "id": record.id,
                    "image": record.image or b"",
                    "more_images": list(record.images[1:]),
                    "text": record.text,
                    "label": record.label,
                    "category": record.category,
                    "source": record.source,
                    "provenance": json.dumps(dict(record.provenance), sort_keys=True),
                },
            )
