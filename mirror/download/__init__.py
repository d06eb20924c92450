"""Blobs on their way: one fetch per digest, one writer, any number of readers from byte 0."""

from mirror.download.bodies import Body, BytesPiece, FilePiece, FlightBody, HeldBody, Piece
from mirror.download.download import Download
from mirror.download.downloads import Downloads, Flights
from mirror.download.fetch import Tools
from mirror.download.lanes import PACED, Lanes
from mirror.download.lending import follow
from mirror.download.ranges import RangeBody
from mirror.download.samples import Sample, sample_of_file

__all__ = [
    "PACED",
    "Body",
    "BytesPiece",
    "Download",
    "Downloads",
    "FilePiece",
    "FlightBody",
    "Flights",
    "HeldBody",
    "Lanes",
    "Piece",
    "RangeBody",
    "Sample",
    "Tools",
    "follow",
    "sample_of_file",
]
