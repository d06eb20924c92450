"""Other workers of this machine: each upstream host has one that asks it, and the others ask that one."""

from mirror.peers.far import FarStream, FarUpstreams
from mirror.peers.onlooker import Onlooker
from mirror.peers.peers import Lost, Peers, Silent, Talk, answering_a_peer

__all__ = ["FarStream", "FarUpstreams", "Lost", "Onlooker", "Peers", "Silent", "Talk", "answering_a_peer"]
