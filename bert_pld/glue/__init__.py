"""Fine-tuning on the tasks of GLUE (Wang et al., arXiv:1804.07461): the tasks, their files, metrics and results."""
