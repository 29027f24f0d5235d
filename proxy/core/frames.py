"""zstd frames, with a trained dictionary or without."""

from typing import Final

import zstandard

# Level 3 gains 0.01 at most for up to half as much time again (with a dictionary 5 % of what is
# left, for a fifth more up to 8 KB and half as much again beyond); 6 is 2 to 8 times slower; -1
# leaves 1.2 to 2 times as many bytes. `bench/bench_compression.py` has the figures.
ZSTD_LEVEL: Final = 1

FrameError: Final = zstandard.ZstdError


def frame_info(frame: bytes) -> tuple[int, int]:
    """What a frame's first bytes tell: the length of its content, its dictionary's id (0: none).

    Raises FrameError for what is no frame.
    """
    parameters = zstandard.get_frame_parameters(frame)
    return parameters.content_size, parameters.dict_id


class Frames:
    """Makes frames and reads them, from any thread. Raises FrameError for a broken dictionary.

    Frames made with a dictionary carry a checksum of their content: another dictionary under the
    same id would give other content, and nothing else would tell.
    """

    __slots__ = ("_compressors", "_decompressors", "_dictionary")

    def __init__(self, dictionary: bytes | None = None) -> None:
        self._dictionary: zstandard.ZstdCompressionDict | None = None
        if dictionary is not None:
            trained = zstandard.DICT_TYPE_FULLDICT
            self._dictionary = zstandard.ZstdCompressionDict(dictionary, dict_type=trained)
            self._dictionary.precompute_compress(level=ZSTD_LEVEL)
        # A context costs more to make than to use on a small payload, and serves one thread at a
        # time: each is taken out of its list while it works.
        self._compressors: list[zstandard.ZstdCompressor] = []
        self._decompressors: list[zstandard.ZstdDecompressor] = []

    @property
    def dictionary_id(self) -> int:
        """What frames carry; 0 without a dictionary."""
        return 0 if self._dictionary is None else self._dictionary.dict_id()

    def compress(self, content: bytes) -> bytes:
        """One frame."""
        try:
            compressor = self._compressors.pop()
        except IndexError:
            compressor = zstandard.ZstdCompressor(
                level=ZSTD_LEVEL,
                dict_data=self._dictionary,
                write_checksum=self._dictionary is not None,
            )
        frame = compressor.compress(content)
        self._compressors.append(compressor)
        return frame

    def inflate(self, frame: bytes) -> bytes:
        """The content of one frame, of which `frame_info` told the length before.

        Raises FrameError for anything but one whole frame made with this dictionary.
        """
        try:
            decompressor = self._decompressors.pop()
        except IndexError:
            decompressor = zstandard.ZstdDecompressor(dict_data=self._dictionary)
        content = decompressor.decompress(frame, allow_extra_data=False)
        self._decompressors.append(decompressor)
        return content


PLAIN: Final = Frames()
