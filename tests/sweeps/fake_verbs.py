"""A command line whose verbs compute nothing: each leaves what the real one would, at once.

``train`` counts its steps in a file as it goes on, and fails as ``train.trouble`` says: ``error``;
``kill``, once, in the middle; ``always``; ``wait`` until it is told to stop, and then it saves.
As real ones do, ``train`` refuses a checkpoint of another configuration, and ``evaluate`` reads
again what it has written of an adapter of the same name.
"""

import json
import os
import signal
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    verb, words = argv[0], argv[1:]
    options = dict(zip(words[::2], words[1::2], strict=False))
    out = Path(words[words.index("--out") + 1])
    fields = dict(w.removeprefix("--config.").split("=", 1) for w in words if "--config." in w)
    if verb == "train":
        file = Path(options["--config"].partition(":")[0]).read_text()
        return train(out, fields, json.dumps([file, fields]))
    model, kept = Path(options["--model"]), out / "verdicts"
    if not kept.exists():
        kept.write_text((model / "adapter").read_text())
    right = float(kept.read_text())
    entries = {"adapter.all.asr": {"value": 1 - right, "low": 0.0, "high": 1.0, "n": 100}}
    (out / "report.json").write_text(json.dumps({"meta": {"title": "t"}} | entries))
    return 1  # a row was left out


def train(out: Path, fields: dict[str, str], identity: str) -> int:
    trouble, log, checkpoint = fields.get("train.trouble", ""), out / "steps", out / "latest"
    if checkpoint.exists() and checkpoint.read_text() != identity:
        print(f"crossguard: {out}: its checkpoint is of another run (...)", file=sys.stderr)
        return 1
    checkpoint.write_text(identity)
    with log.open("a") as file:
        file.write(f"{os.getpid()} {os.environ.get('NPROC', '')}\n")
    tries = len(log.read_text().splitlines())
    if trouble == "error":
        print("crossguard: row 3: no such picture", file=sys.stderr)
        return 1
    if trouble == "always" or (trouble == "kill" and tries == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "wait" and tries == 1:
        (out / "waits").touch()
        try:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
            signal.pause()
        finally:
            (out / "saved").touch()
    rate = float(fields.get("optim.learning_rate", identity.partition('rate\\": ')[2][:3]))
    seed = int(fields["train.seed"])
    value = rate + seed / 100
    (out / "adapter").write_text(str(value))
    rows = [{"step": 1, "loss": 9.0}, {"step": 2, "loss": 1.0, "eval/auroc": value}]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
