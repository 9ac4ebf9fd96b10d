"""What pyproject.toml cannot say: the dependencies are those of the requirements files, so that nothing is listed twice."""

from pathlib import Path

from setuptools import setup


def requirements(name: str) -> list[str]:
    """The lines of a requirements file without comments and without the files that it refers to (-r)."""
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-"))]


setup(
    install_requires=requirements("requirements.txt"),
    extras_require={
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "plan": ["jax[tpu]"],  # tools/plan.py: the compiler for TPUs, which needs no TPU
        "serve": requirements("requirements-serve.txt"),
        "clean": requirements("requirements-clean.txt"),
        "cloud": requirements("requirements-cloud.txt"),
        "beam": requirements("requirements-beam.txt"),
        "wikipedia": requirements("requirements-wikipedia.txt"),
        "dev": [
            line
            for name in ("serve", "clean", "cloud", "wikipedia", "dev")
            for line in requirements(f"requirements-{name}.txt")
        ],
        "parity": requirements("requirements-parity.txt"),
        "docs": requirements("requirements-docs.txt"),
    },
)
