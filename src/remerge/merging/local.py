"""The local executor: chunks of output files, computed by a few threads, in any order.

A chunk is an aligned byte range of an output file: read the same range of the base, patch what
deltas touch, hand it on. It is stateless and idempotent, so the bytes depend neither on the chunk
size nor on the threads. Only the digests need order, within each file: a thread waits for its turn
to hash, while the others compute.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import Any, Protocol

import torch

from remerge.merging.budget import Resources
from remerge.merging.merged import MergedCheckpoint
from remerge.merging.plan import OutputFile, Piece
from remerge.merging.retention import SPAN, Block, Meter, Sums, blocks, encoded_blocks
from remerge.merging.round_trip import round_trips
from remerge.merging.tensor_plan import TensorPlan
from remerge.sources.checkpoint import Shard, StoredTensor
from remerge.sources.dtypes import itemsize, torch_dtype
from remerge.sources.storage import aligned_buffer


class Sink(Protocol):
    """Where derived chunks go: a file being written, or one being compared."""

    def put(self, file: OutputFile, offset: int, chunk: memoryview, length: int) -> None: ...

    def finish(self, file: OutputFile, digest: str, twin_digest: str | None) -> None:
        """All chunks of the file have been put; its digest and that of the base shard read."""
        ...


Progress = Callable[[int, str], None]


def derive(
    merged: MergedCheckpoint,
    files: Sequence[OutputFile],
    unread: Sequence[Shard],
    sink: Sink,
    resources: Resources,
    progress: Progress,
    meter: Meter | None = None,
) -> dict[str, str]:
    """Derive every file into the sink; returns the digests of the base shards read.

    ``unread`` are base shards that are nobody's twin: they are read once more for their digest
    alone. ``progress`` is told bytes done and the tensor at hand, from any thread. ``meter``
    measures what the output keeps of the deltas.
    """
    run = _Run(merged, sink, resources.chunk, progress, meter)
    lanes = [_Lane(file, file.twin) for file in files] + [_Lane(None, s) for s in unread]
    chunks = _interleaved(lanes, resources)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _run_all(run, lanes, chunks, resources.threads)
    finally:
        torch.set_num_threads(before)
    return {lane.shard.name: lane.read_digest for lane in lanes if lane.shard is not None}


@dataclass
class _Turns:
    """A SHA-256 fed by many threads in the order of the chunks."""

    hash: Any = field(default_factory=hashlib.sha256)
    next: int = 0
    stopped: bool = False
    changed: Condition = field(default_factory=Condition)

    def update(self, number: int, data: memoryview) -> None:
        with self.changed:
            while self.next != number and not self.stopped:
                self.changed.wait()
            if self.stopped:
                raise _Stopped
        self.hash.update(data)
        with self.changed:
            self.next += 1
            self.changed.notify_all()

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()


@dataclass
class _Lane:
    """One output file under way, or one base shard that is only read."""

    file: OutputFile | None
    shard: Shard | None
    read: _Turns = field(default_factory=_Turns)
    written: _Turns = field(default_factory=_Turns)
    left: int = 0
    lock: Lock = field(default_factory=Lock)

    @property
    def size(self) -> int:
        if self.file is not None:
            return self.file.size
        return self.shard.size if self.shard is not None else 0

    @property
    def copied(self) -> bool:
        return self.file is None or self.file.copied

    @property
    def read_digest(self) -> str:
        return self.read.hash.hexdigest()

    @property
    def digest(self) -> str:
        """Digest of the output; a copied file is hashed once, for both."""
        return self.read_digest if self.copied else self.written.hash.hexdigest()


class _Stopped(Exception):
    """Another thread failed; this one gives up its work."""


@dataclass(frozen=True)
class _Chunk:
    lane: _Lane
    number: int
    start: int
    stop: int


def _interleaved(lanes: Sequence[_Lane], resources: Resources) -> Iterator[_Chunk]:
    """Chunks of a few files in turn, so that their digests are computed in parallel."""
    waiting = list(lanes)
    under_way: list[Iterator[_Chunk]] = []
    while waiting or under_way:
        while waiting and len(under_way) < max(1, resources.threads - 1):
            under_way.append(_chunks(waiting.pop(0), resources.chunk))
        for lane in list(under_way):
            chunk = next(lane, None)
            if chunk is None:
                under_way.remove(lane)
            else:
                yield chunk


def _chunks(lane: _Lane, size: int) -> Iterator[_Chunk]:
    starts = range(0, max(lane.size, 1), size)
    lane.left = len(starts)
    for number, start in enumerate(starts):
        yield _Chunk(lane, number, start, min(start + size, lane.size))


def _run_all(run: _Run, lanes: Sequence[_Lane], chunks: Iterator[_Chunk], threads: int) -> None:
    lock = Lock()

    def work() -> None:
        torch.set_num_threads(1)
        buffer = aligned_buffer(run.chunk_size)
        while not run.stopped:
            with lock:
                chunk = next(chunks, None)
            if chunk is None:
                return
            run.do(chunk, buffer)

    with ThreadPoolExecutor(threads, thread_name_prefix="merge") as pool:
        futures = [pool.submit(work) for _ in range(threads)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            # Also on Ctrl-C: nobody may go on waiting for a turn that will not come.
            run.stopped = True
            for lane in lanes:
                lane.read.stop()
                lane.written.stop()
    failures = [f.exception() for f in futures]
    for failure in failures:
        if failure is not None and not isinstance(failure, _Stopped):
            raise failure


@dataclass
class _Run:
    merged: MergedCheckpoint
    sink: Sink
    chunk_size: int
    progress: Progress
    meter: Meter | None
    stopped: bool = False

    def do(self, chunk: _Chunk, buffer: memoryview) -> None:
        lane, length = chunk.lane, chunk.stop - chunk.start
        data = buffer[:length]
        if lane.shard is not None:
            source = self.merged.reader.raw_file(lane.shard.name)
            source.read_into(buffer, chunk.start, length)
            lane.read.update(chunk.number, data)
        tensor = lane.shard.name if lane.shard is not None else ""
        if lane.file is not None:
            for piece in _pieces(lane.file, chunk.start, chunk.stop):
                tensor = piece.plan.name
                if lane.file.twin is None or not piece.plan.copied:
                    self._fill(piece, chunk, buffer, in_place=lane.file.twin is not None)
            if lane.file.twin is None:
                _fill_head(lane.file, chunk, buffer)
            if not lane.copied:
                lane.written.update(chunk.number, data)
            self.sink.put(lane.file, chunk.start, buffer, length)
        self.progress(length, tensor)
        with lane.lock:
            lane.left -= 1
            last = lane.left == 0
        if last and lane.file is not None:
            read = lane.read_digest if lane.shard is not None else None
            self.sink.finish(lane.file, lane.digest, read)

    def _fill(self, piece: Piece, chunk: _Chunk, buffer: memoryview, *, in_place: bool) -> None:
        """Put the part of a tensor that lies in this chunk into the buffer."""
        plan = piece.plan
        start, stop = max(piece.start, chunk.start), min(piece.stop, chunk.stop)
        place = buffer[start - chunk.start : stop - chunk.start]
        if plan.copied and isinstance(plan.source, StoredTensor):
            offset = plan.source.start + start - piece.start
            self.merged.reader.file(plan.source.shard).read_into(place, offset, stop - start)
            return
        target = torch.frombuffer(place, dtype=torch_dtype(plan.dtype))
        size = itemsize(plan.dtype)
        first = (start - piece.start) // size
        if plan.encoding is not None:
            self._encode(piece, target, first)
        elif in_place and plan.reads_source and isinstance(plan.source, StoredTensor):
            self._merge(piece, target, target, first)
        else:
            # Spans of the file, as the delta is measured on; unpacking codes takes room.
            cuts = [start, *range(start // SPAN * SPAN + SPAN, stop, SPAN), stop]
            for begin, end in itertools.pairwise(cuts):
                part = target[(begin - start) // size : (end - start) // size]
                self._derive(piece, part, first + (begin - start) // size)

    def _derive(self, piece: Piece, target: torch.Tensor, first: int) -> None:
        """Merge from base elements of another place, dtype or format."""
        source = None
        if piece.plan.reads_source and piece.plan.source is not None:
            source = self.merged.reader.values(piece.plan.source, first, target.numel())
        self._merge(piece, source, target, first)

    def _merge(
        self, piece: Piece, source: torch.Tensor | None, target: torch.Tensor, first: int
    ) -> None:
        """Merge a range of elements, and measure the blocks in it; ``source`` may be ``target``."""
        plan, change = piece.plan, piece.plan.change
        if self.meter is None or change is None or not plan.compares:
            self.merged.merge(plan, source, target, first)
            return
        inside = blocks(piece, self.meter.mode, first, first + target.numel())
        before = [self._base_block(plan, source, first, block) for block in inside]
        self.merged.merge(plan, source, target, first)
        for block, base in zip(inside, before, strict=True):
            exact = torch.empty(block.count, dtype=torch.float64)
            start = base if plan.reads_source else None
            self.merged.apply(change, plan.source, start, exact, block.first)
            output = target[block.first - first :][: block.count]
            self.meter.add(change.tensor, block, Sums.of(base, exact, output))

    def _base_block(
        self, plan: TensorPlan, source: torch.Tensor | None, first: int, block: Block
    ) -> torch.Tensor:
        """A copy of the base's values in a block, read where the merge itself does not."""
        if source is not None:
            return source[block.first - first :][: block.count].clone()
        assert plan.source is not None
        return self.merged.reader.values(plan.source, block.first, block.count)

    def _encode(self, piece: Piece, target: torch.Tensor, first: int) -> None:
        """Write a part of a changed tensor in its quantised format."""
        self.merged.merge(piece.plan, None, target, first)
        encoding = piece.plan.encoding
        if self.meter is None or encoding is None or encoding.role != "codes" or first:
            return
        if encoding.change is None or not encoding.compares:
            return
        found = encoded_blocks(encoding.codec.shape, self.meter.mode)
        for block, base, exact, output in round_trips(self.merged, encoding, found):
            self.meter.add(encoding.change.tensor, block, Sums.of(base, exact, output))


def _pieces(file: OutputFile, start: int, stop: int) -> Iterator[Piece]:
    """The pieces that meet ``[start, stop)``; pieces lie in order."""
    low, high = 0, len(file.pieces)
    while low < high:
        middle = (low + high) // 2
        if file.pieces[middle].stop <= start:
            low = middle + 1
        else:
            high = middle
    for piece in file.pieces[low:]:
        if piece.start >= stop:
            return
        if piece.stop > piece.start:
            yield piece


def _fill_head(file: OutputFile, chunk: _Chunk, buffer: memoryview) -> None:
    if chunk.start < len(file.head):
        part = file.head[chunk.start : chunk.stop]
        buffer[: len(part)] = part
