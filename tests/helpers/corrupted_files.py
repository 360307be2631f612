"""Small files of rows in every form that vold reads, corrupted as files are on their way, and what other libraries read
in the same bytes. A seed gives the same file, for one version of the libraries that write it.
"""

import contextlib
import functools
import io
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
from PIL import Image

datasets.disable_progress_bars()

ENCODINGS = ("utf-8-sig", "utf-16", "utf-32", "utf-16-le", "latin-1", "gbk", "cp1252")
PICTURES = ("png", "png16", "tiff32", "palette", "jpeg", "webp", "gif", "bmp", "tiff", "avif")


@dataclass(frozen=True)
class Corrupted:
    """path: the file, or the folder of a data set. kind: what it was. how: how it was corrupted, for messages."""

    path: Path
    kind: str
    how: str


def rows(rng: random.Random, count: int) -> list[dict]:
    texts = ["2 + 3?", "小明 2 + 3?", "was ist ½?", "\U0001f600 <|im_end|>", 'a\\b"c']
    return [
        {
            "id": f"q{number}",
            "prompt": f"{rng.choice(texts)} {number}",
            "reference": rng.choice([5, "5", 0.1, -3, "x"]),
            "completion": f"\\boxed{{{number}}}",
            "tags": rng.choice([[], ["sum"], ["sum", "ganz klein"]]),
            "parameters": rng.choice([None, {"relative_tolerance": 0.25}]),
        }
        for number in range(count)
    ]


# --- corruptions of bytes, for every kind ---


def flip_bits(rng: random.Random, content: bytes) -> bytes:
    out = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def truncate(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def insert_nulls(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + b"\0" * rng.choice([1, 2, 64]) + content[at:]


def scramble(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + rng.randbytes(rng.randint(1, 64)) + content[at + 64 :]


def swap(rng: random.Random, content: bytes) -> bytes:
    """Two blocks of the same length change places, as pages of a file do."""
    size = rng.randint(1, max(1, len(content) // 4))
    first, second = sorted(rng.randrange(0, max(1, len(content) - size)) for _ in range(2))
    if second - first < size:
        return content[first:] + content[:first]
    return (
        content[:first]
        + content[second : second + size]
        + content[first + size : second]
        + content[first : first + size]
        + content[second + size :]
    )


def leave(rng: random.Random, content: bytes) -> bytes:
    return content


BYTES: tuple[Callable[[random.Random, bytes], bytes], ...] = (flip_bits, truncate, insert_nulls, scramble, swap, leave)


# --- corruptions of JSON text ---


def half_character(rng: random.Random, text: str) -> str:
    return text.replace("2 + 3", "\\ud83d 2 + 3", 1)


def nest(rng: random.Random, text: str) -> str:
    depth = rng.choice([50, 99, 101, 400, 3000, 100_000])
    return text.replace('"sum"', "[" * depth + "]" * depth, 1)


def many_digits(rng: random.Random, text: str) -> str:
    return text.replace('"reference": 5', '"reference": ' + "9" * rng.choice([400, 4299, 5000]), 1)


def same_key_twice(rng: random.Random, text: str) -> str:
    return text.replace('"prompt": ', '"prompt": "another", "prompt": ', 1)


def other_type(rng: random.Random, text: str) -> str:
    key = rng.choice(['"prompt": ', '"reference": ', '"tags": ', '"id": ', '"completion": ', '"parameters": '])
    value = rng.choice(["null", "[1]", "{}", "true", "NaN", "-Infinity", "1e999", "-0", '""', '{"a": [null]}'])
    return text.replace(key, f'{key}{value}, "was_{key[1:]}', 1)


def break_lines(rng: random.Random, text: str) -> str:
    return text.replace("\n", rng.choice(["\r\n", "\n\n \n", "\r", "\u2028", "\x85", "\n\ufeff"]))


def pass_on(rng: random.Random, text: str) -> str:
    return text


TEXTS = (half_character, nest, many_digits, same_key_twice, other_type, break_lines, pass_on)


def corrupt_text(rng: random.Random, text: str) -> tuple[bytes, str]:
    change = rng.choice(TEXTS)
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", *ENCODINGS))
    content = change(rng, text).encode(encoding, errors="ignore")
    damage = rng.choice((leave, leave, *BYTES)) if change is not nest else leave
    return damage(rng, content), f"{change.__name__}, {encoding}, {damage.__name__}"


# --- files ---


def jsonl_file(rng: random.Random, folder: Path) -> Corrupted:
    text = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in rows(rng, rng.randint(1, 6)))
    content, how = corrupt_text(rng, text)
    path = folder / rng.choice(["rows.jsonl", "rows.ndjson"])
    path.write_bytes(content)
    return Corrupted(path, "lines", how)


def array_file(rng: random.Random, folder: Path) -> Corrupted:
    text = json.dumps(rows(rng, rng.randint(0, 4)), indent=rng.choice([None, 0, 2]), ensure_ascii=rng.random() < 0.5)
    content, how = corrupt_text(rng, text)
    path = folder / "rows.json"
    path.write_bytes(content)
    return Corrupted(path, "array", how)


def table(rng: random.Random, count: int) -> pyarrow.Table:
    made = rows(rng, count)
    return pyarrow.table(
        {
            "id": [row["id"] for row in made],
            "prompt": [row["prompt"] for row in made],
            "reference": pyarrow.array([rng.choice([0.1, 4.0, None]) for _ in made], pyarrow.float32()),
            "completion": [row["completion"] for row in made],
            "tags": pyarrow.array([row["tags"] for row in made], pyarrow.list_(pyarrow.string())),
            "category": pyarrow.array([rng.choice(["a", "b"]) for _ in made]).dictionary_encode(),
            "parameters": pyarrow.array(
                [row["parameters"] for row in made], pyarrow.struct({"relative_tolerance": pyarrow.float64()})
            ),
        }
    )


@functools.lru_cache(maxsize=64)
def parquet_bytes(seed: int) -> bytes:
    rng, buffer = random.Random(seed), io.BytesIO()
    pyarrow.parquet.write_table(
        table(rng, rng.randint(1, 40)),
        buffer,
        row_group_size=rng.choice([3, 100]),
        data_page_size=64,
        compression=rng.choice(["none", "snappy", "zstd", "gzip"]),
        data_page_version=rng.choice(["1.0", "2.0"]),
        use_dictionary=rng.random() < 0.5,
        write_page_checksum=rng.random() < 0.5,
    )
    return buffer.getvalue()


def parquet_file(rng: random.Random, folder: Path) -> Corrupted:
    damage = rng.choice(BYTES)
    path = folder / "rows.parquet"
    path.write_bytes(damage(rng, parquet_bytes(rng.randrange(24))))
    return Corrupted(path, "parquet", damage.__name__)


@functools.lru_cache(maxsize=64)
def saved_files(seed: int) -> dict[str, bytes]:
    import tempfile

    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        whole = datasets.Dataset(table(rng, rng.randint(1, 12)))
        whole.cast_column("category", datasets.Value("string")).save_to_disk(name, num_shards=1)
        return {file.name: file.read_bytes() for file in Path(name).iterdir()}


def saved_folder(rng: random.Random, folder: Path) -> Corrupted:
    files = saved_files(rng.randrange(4))
    chosen = (
        rng.choice(sorted(files)) if rng.random() < 0.4 else next(name for name in files if name.endswith(".arrow"))
    )
    damage = rng.choice(BYTES)
    path = folder / "saved"
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(damage(rng, content) if name == chosen else content)
    return Corrupted(path, "saved", f"{chosen}: {damage.__name__}")


@functools.lru_cache
def picture_bytes(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    picture, buffer = Image.fromarray(noise), io.BytesIO()
    if kind == "png16":
        picture, kind = Image.fromarray(noise[..., 0].astype(np.uint16) * 257), "png"
    elif kind == "tiff32":
        picture, kind = Image.fromarray(noise[..., 0].astype(np.int32) * 257), "tiff"
    elif kind == "palette":
        picture, kind = picture.quantize(16), "png"
    picture.save(buffer, kind, **({"exif": picture.getexif()} if kind == "jpeg" else {}))
    return buffer.getvalue()


def picture_file(rng: random.Random, folder: Path) -> Corrupted:
    kind, damage = rng.choice(PICTURES), rng.choice(BYTES)
    (folder / "picture").write_bytes(damage(rng, picture_bytes(kind)))
    path = folder / "rows.jsonl"
    row = {"prompt": "q", "twin": "a", "reference": "1", "completion": "1", "image": "picture"}
    path.write_text(json.dumps(row) + "\n")
    return Corrupted(path, "picture", f"{kind}, {damage.__name__}")


def misnamed_file(rng: random.Random, folder: Path) -> Corrupted:
    """Whole content under a name of another kind, or of a kind that vold does not read."""
    import gzip

    text = "".join(json.dumps(row) + "\n" for row in rows(rng, 2)).encode()
    name, content = rng.choice(
        [
            ("rows.jsonl", gzip.compress(text, mtime=0)),
            ("rows.jsonl.gz", gzip.compress(text, mtime=0)),
            ("rows.jsonl.zst", pyarrow.compress(text, "zstd", asbytes=True)),
            ("rows.json", parquet_bytes(0)),
            ("rows.jsonl", picture_bytes("png")),
            ("rows.parquet", text),
            ("rows.csv", b"prompt,reference\n2+3,5\n"),
            ("rows.jsonl", b"prompt,reference\n2+3,5\n"),
            ("rows.jsonl", b""),
            ("rows.parquet", b""),
        ]
    )
    path = folder / name
    path.write_bytes(content)
    return Corrupted(path, "misnamed", name)


MAKERS = (jsonl_file, array_file, parquet_file, saved_folder, picture_file, misnamed_file)
SHARES = (30, 15, 22, 8, 20, 5)


def corrupted_files(count: int, root: Path, seed: int = 0) -> Iterator[Corrupted]:
    """`count` files, one after the other, each in a folder of its own."""
    choose = random.Random(seed)
    for number in range(count):
        (make,) = choose.choices(MAKERS, SHARES)
        folder = root / str(number)
        folder.mkdir()
        yield make(random.Random(f"{seed}:{number}"), folder)


# --- what other libraries read ---

Unreadable = (ValueError, OSError, RecursionError, OverflowError, pyarrow.ArrowException)


def decode(content: bytes) -> str:
    """The text of a file, by the mark at its beginning. Raises UnicodeError."""
    for mark, encoding in ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32")):
        if content.startswith(mark):
            return content.decode(encoding)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def marked(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON, with a further key if one comes twice, of which json takes the last."""
    made = dict(pairs)
    return made if len(made) == len(pairs) else {**made, "a key comes twice": True}


def json_lines(path: Path) -> list[object | None]:
    """What json reads in each line that is not blank; None for a line that it refuses."""
    content = path.read_bytes()
    try:
        content = decode(content).encode(errors="surrogatepass")
    except UnicodeError:
        content = content.removeprefix(b"\xef\xbb\xbf")
    values: list[object | None] = []
    for line in content.split(b"\n"):
        if line.strip():
            try:
                values.append(json.loads(line.decode(), object_pairs_hook=marked))
            except Unreadable:
                values.append(None)
    return values


def arrow_rows(path: Path) -> list[dict]:
    """What pyarrow reads in a Parquet file, or in the stream of a saved data set."""
    if path.is_dir():
        (file,) = path.glob("*.arrow")
        with pyarrow.OSFile(str(file)) as source:
            read = pyarrow.ipc.open_stream(source).read_all()
        read.validate(full=True)
    else:
        read = pyarrow.parquet.ParquetFile(path).read()
    return read.to_pylist()


def rows_of(path: Path) -> list[object | None]:
    """What json or pyarrow reads in a file of any kind, by its name; None for a line that json refuses. Columns that
    pyarrow refuses are left out, and null is in the place of what json refuses in an array. Raises Unreadable.
    """
    if path.is_dir():
        return list(arrow_rows(path))
    if path.suffix == ".parquet":
        return list(readable_columns(path))
    if path.suffix == ".json":
        with contextlib.suppress(*Unreadable):
            text = re.sub(r"\[{100,}\]{100,}|9{4301,}", "null", decode(path.read_bytes()))
            if isinstance(whole := json.loads(text, object_pairs_hook=marked), list):
                return whole
    elif path.suffix not in (".jsonl", ".ndjson"):
        raise ValueError(f"{path.suffix} is no form of rows")
    return json_lines(path)


def readable_columns(path: Path) -> list[dict]:
    """The rows of a Parquet file, in those columns of which every value can be read."""
    file = pyarrow.parquet.ParquetFile(path)
    rows: list[dict] = [{} for _ in range(file.metadata.num_rows)]
    for name in file.schema_arrow.names:
        with contextlib.suppress(*Unreadable):
            for row, value in zip(rows, file.read(columns=[name])[name].to_pylist(), strict=True):
                row[name] = value
    return rows


def pixels(path: Path) -> np.ndarray:
    """What Pillow decodes, over white, as floating point from 0 to 255."""
    with Image.open(path) as picture:
        picture.load()
        if picture.mode.startswith("I"):
            grey = np.asarray(picture).astype(float) / 257
            return np.repeat(grey[..., None], 3, axis=2)
        clear = picture.convert("RGBA")
    values = np.asarray(clear).astype(float)
    alpha = values[..., 3:] / 255
    return values[..., :3] * alpha + 255 * (1 - alpha)
