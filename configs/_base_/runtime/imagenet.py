# As default, and the best epoch is kept beside the last three.
_base_ = ["default.py"]
default_hooks = dict(checkpoint=dict(save_best="top1"))
