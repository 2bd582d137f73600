"""Records in TFDS folders of ArrayRecord files."""

import hashlib
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from crossguard_jax.core.errors import UserError
from crossguard_jax.data.builders import RecordSource, open_dataset, write_dataset
from crossguard_jax.data.pipeline import mixture
from crossguard_jax.data.records import Record


def picture(seed: int, format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


RECORDS = [
    Record("a", (picture(0),), "naïve \U0001f600", "unsafe", "hot", "toy", {"keyword": "kettle"}),
    Record("b", (), "text alone", "safe"),
    Record("c/d", (picture(1, "JPEG"),), "", "", "", ""),
    Record("pair", (picture(1), picture(2, "JPEG")), "which is hot?", "safe"),
    *(Record(f"r{n}", (picture(n),), f"question {n}", "safe", "c", "s") for n in range(96)),
]


def test_a_record_stays_bit_identical_through_array_record(tmp_path):
    assert write_dataset({"train": iter(RECORDS)}, tmp_path, "implicit") == {"train": 100}
    source = open_dataset(tmp_path, "implicit", "train")
    assert isinstance(source, RecordSource)
    assert [source[n] for n in range(len(source))] == RECORDS  # the order stays, too


def test_a_source_has_several_splits_and_a_folder_several_sources(tmp_path):
    write_dataset({"train": RECORDS[:5], "test": RECORDS[5:8]}, tmp_path, "explicit")
    write_dataset({"train": RECORDS[8:9]}, tmp_path, "benign")
    write_dataset({"train": RECORDS[9:11]}, tmp_path, "mine")  # a name TFDS has not heard of
    assert open_dataset(tmp_path, "explicit", "test")[0] == RECORDS[5]
    assert open_dataset(tmp_path, "benign", "train")[0] == RECORDS[8]
    assert len(open_dataset(tmp_path, "mine", "train")) == 2


def test_the_same_records_make_the_same_files(tmp_path):
    def digest(folder) -> dict[str, str]:
        files = sorted((tmp_path / folder).rglob("*array_record*"))
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    for folder in ("one", "two"):
        write_dataset({"train": RECORDS}, tmp_path / folder, "implicit")
    assert digest("one") == digest("two") != {}


def test_writing_again_replaces_and_a_failure_keeps_the_older_data(tmp_path):
    write_dataset({"train": RECORDS[:3]}, tmp_path, "implicit")
    write_dataset({"train": RECORDS[:2]}, tmp_path, "implicit")
    with pytest.raises(UserError, match="implicit/train: two records are called 'a'"):
        write_dataset({"train": [RECORDS[0], RECORDS[0]]}, tmp_path, "implicit")
    with pytest.raises(UserError, match="no records to write"):
        write_dataset({"train": []}, tmp_path, "implicit")
    assert len(open_dataset(tmp_path, "implicit", "train")) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["crossguard"]


@pytest.mark.parametrize("split", ["", "held out", "../train"])
def test_a_split_that_cannot_be_a_name_is_refused_by_it(split, tmp_path):
    with pytest.raises(UserError, match=f"implicit: split '{split}': letters"):
        write_dataset({split: RECORDS}, tmp_path, "implicit")
    assert not list(tmp_path.iterdir())


def test_what_is_not_there_is_an_error_that_says_what_is(tmp_path):
    write_dataset({"train": RECORDS[:3]}, tmp_path, "implicit")
    with pytest.raises(UserError, match="no source 'explicit' in it .there are implicit"):
        open_dataset(tmp_path, "explicit", "train")
    with pytest.raises(UserError, match="no split 'test' in it .there are train"):
        open_dataset(tmp_path, "implicit", "test")


def test_writing_prints_nothing_and_needs_no_tensorflow(tmp_path):
    code = (
        "import sys\n"
        "from crossguard_jax.data import builders, pipeline\n"
        "from crossguard_jax.data.records import Record\n"
        "assert not {'grain', 'tensorflow_datasets'} & set(sys.modules), 'imported too early'\n"
        "builders.write_dataset({'train': [Record('a', (b'1',), 't')]}, sys.argv[1], 'implicit')\n"
        "assert builders.open_dataset(sys.argv[1], 'implicit', 'train')[0].image == b'1'\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_row_that_a_disk_has_damaged_is_named_with_the_mend(tmp_path):
    letters = np.random.default_rng(0).integers(97, 123, (200, 3000), dtype=np.uint8)
    rows = [Record(f"r{i}", (), bytes(row).decode(), "safe") for i, row in enumerate(letters)]
    write_dataset({"train": rows}, tmp_path, "x")
    (file,) = tmp_path.rglob("*.array_record*")
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = bytes(3000)
    file.write_bytes(data)
    batches = mixture(
        {"x": open_dataset(tmp_path, "x", "train")},
        {"x": 1},
        seed=0,
        batch_size=8,
        transform=lambda records: {"n": np.zeros(len(records))},
    )
    message = (
        rf"{tmp_path}/crossguard/x, train: record \d+ cannot be read .*; remove .*x.settings.json"
    )
    with pytest.raises(UserError, match=message) as caught:
        for _ in range(25):
            next(batches)
    assert "\n" not in str(caught.value)
