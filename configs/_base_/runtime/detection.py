# What every detector shares: mmdet's names, pictures and test-time augmentation, on top of the runtime of all runs.
_base_ = "default.py"
default_scope = "mmdet"
default_hooks = dict(
    logger=dict(interval=50),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="DetVisualizationHook"),
)
env_cfg = dict(cudnn_benchmark=False)  # images come in many sizes
log_processor = dict(window_size=50)
visualizer = dict(type="DetLocalVisualizer", name="visualizer")
tta_model = dict(type="DetectorTTA")
