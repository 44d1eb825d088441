"""The main job on real pictures, from data to answers: what `make demo` runs."""

from avse.demo.job import run_demo

__all__ = ["run_demo"]
