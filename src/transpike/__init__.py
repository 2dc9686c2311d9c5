"""Transpike turns a pretrained PyTorch network into a spiking one, runs it, and says what it is worth."""

from transpike.artifact import load
from transpike.convert import build, calibrate, convert
from transpike.errors import TranspikeError
from transpike.graph.capture import capture
from transpike.measure.energy import energy
from transpike.measure.evaluate import evaluate
from transpike.measure.inspect import inspect
from transpike.measure.report import Report
from transpike.network import SpikingNetwork, simulate
from transpike.spiking.plan import Plan

__all__ = [
    "Plan",
    "Report",
    "SpikingNetwork",
    "TranspikeError",
    "build",
    "calibrate",
    "capture",
    "convert",
    "energy",
    "evaluate",
    "inspect",
    "load",
    "simulate",
]
