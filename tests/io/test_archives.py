"""Paths that lead into archives: the same answers as of folders, and nothing outside."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from crossguard_jax.core.errors import UserError
from crossguard_jax.io import archives
from crossguard_jax.io.jsonl import read_json, read_rows

FILES = {"a.json": b"[1]", "in/b.jsonl": b'{"a": 1}\n', "in/deep/c.txt": b"c", "ü 茶.txt": b"tea"}


def made(folder: Path, kind: str) -> Path:
    """The files in a folder, a zip or a tar."""
    path = folder / f"set.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in FILES.items():
                archive.writestr(name, data)
    elif kind == "tar":
        with tarfile.open(path, "w") as tar:
            for name, data in FILES.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        for name, data in FILES.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_an_archive_answers_as_a_folder_does(tmp_path: Path, kind: str) -> None:
    root = made(tmp_path, kind)
    for name, data in FILES.items():
        assert archives.is_file(root / name) and not archives.is_folder(root / name)
        with archives.opened(root / name) as file:
            assert file.read() == data
    for name in (".", "in", "in/deep"):
        assert archives.is_folder(root / name) and not archives.is_file(root / name / "none")
    assert [path.name for path in archives.listing(root)] == ["a.json", "in", "ü 茶.txt"]
    assert [path.name for path in archives.listing(root / "in")] == ["b.jsonl", "deep"]
    assert archives.listing(root / "none") == [] and not archives.is_folder(root / "none")
    assert list(read_rows(root / "in" / "b.jsonl")) == [(1, {"a": 1})]
    assert read_json(root / "a.json") == [1]
    with pytest.raises(UserError, match="none.json: cannot be read .*No such file"):
        read_json(root / "none.json")
    assert not archives.is_file(root / ("n" * 5_000))


def test_links_and_paths_that_lead_out_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../secret"
        tar.addfile(link)
        out = tarfile.TarInfo("../secret")
        out.size = 2
        tar.addfile(out, io.BytesIO(b"me"))
    assert archives.listing(tmp_path / "set.tar") == []
    for name in ("link", "../secret"):
        assert not archives.is_file(tmp_path / "set.tar" / name)


def test_a_zip_with_a_password_is_an_error_of_its_file(tmp_path: Path) -> None:
    path = made(tmp_path, "zip")
    data = bytearray(path.read_bytes())
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(header) + flags] |= 1  # the first member says that it is encrypted
    path.write_bytes(data)
    with pytest.raises(UserError, match="a.json: cannot be read .*encrypted"):
        read_json(path / "a.json")
