# TransNeXt-Base fine-tuned at 384: 86.2 % top-1 as published (arXiv 2311.17132, README), 89.7 M parameters.
# Total batch 1024: 8 processes x 32 x 4 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/transnext/transnext_base_384_ft --launcher pytorch \
#     --amp fp16 --compile
# The batch is not given: that of the training at 224 is taken.
_base_ = ["transnext_small_384_ft.py"]
model = dict(model_name="transnext_base_384", weights="transnext_base.in1k", drop_path_rate=0.8)
