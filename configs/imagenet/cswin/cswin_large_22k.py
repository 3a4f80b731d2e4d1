# CSWin-L on ImageNet-22K at 224: no top-1 is published (arXiv 2107.00652), 197.3 M parameters.
# Total batch 4096: 8 processes x 64 x 8 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/cswin/cswin_large_22k --launcher pytorch --amp fp16
# How the authors trained it is not verified: a usual recipe for ImageNet-22K is taken, much like Swin's.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet22k.py",
    "../../_base_/schedules/imagenet22k_90e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="cswin_large.in22k", num_classes=21841, drop_path_rate=0.2, grad_checkpointing=True)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(accumulative_counts=8)
auto_scale_lr = dict(base_batch_size=4096)
