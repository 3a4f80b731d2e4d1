# TransNeXt-Small fine-tuned at 384: 86.0 % top-1 as published (arXiv 2311.17132, README), 49.7 M parameters.
# Total batch 1024: 8 processes x 32 x 4 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/transnext/transnext_small_384_ft --launcher pytorch \
#     --amp fp16 --compile
# The batch is not given: that of the training at 224 is taken.
_base_ = ["transnext_micro.py"]
model = dict(
    model_name="transnext_small_384", weights="transnext_small.in1k", drop_path_rate=0.7, mixup=dict(cutmix_alpha=0.0)
)
train_cfg = dict(max_epochs=5)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=1e-5), accumulative_counts=4)
param_scheduler = []
