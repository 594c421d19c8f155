"""Which network a checkpoint is of, by the names and shapes of its tensors; no torch.

The three that run here are over two thirds of the models on OpenModelDB, and strictly local. Of the others, the common
ones are known by name, so that who brings one is told what it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from core.errors import ModelError
from core.networks.rrdbnet_config import RRDBNetConfig
from core.networks.span_config import SPANConfig
from core.networks.srvgg_config import SRVGGConfig

Config = RRDBNetConfig | SRVGGConfig | SPANConfig

SUPPORTED = "ESRGAN (RRDBNet), Compact (SRVGGNetCompact) and SPAN"

#: Networks that do not run here, each by names that only its files have; those that contain others come first.
_OTHERS = (
    ("DAT", "layers.0.blocks.0.attn.dwconv.0.weight"),
    ("RGT", "layers.0.blocks.0.attn.attns.0.rpe_biases"),
    ("HAT", "layers.0.residual_group.overlap_attn.qkv.weight"),
    ("ATD", "layers.0.residual_group.td"),
    ("DRCT", "layers.0.swin1.norm1.weight"),
    ("GRL", "layers.0.blocks.0.attn.window_attn.attn_transform.logit_scale"),
    ("CRAFT", "layers.0.residual_group.hf_blocks.0.attn.temperature"),
    ("Swin2SR (its authors' form; the one of Hugging Face runs)", "layers.0.residual_group.blocks.0.attn.logit_scale"),
    ("Swin2SR (without the config.json that belongs to it)", "swin2sr.first_convolution.weight"),
    ("SwinIR", "layers.0.residual_group.blocks.0.attn.relative_position_bias_table"),
    ("OmniSR", "residual_layer.0.residual_layer.0.layer.0.fn.0.weight"),
    ("RealPLKSR", "feats.1.lk.conv.weight"),
    ("RealPLKSR", "feats.1.lk.convs.0.weight"),
    ("RealPLKSR", "feats.1.lk.mn_conv.weight"),
    ("SAFMN", "feats.0.safm.mfr.0.weight"),
    ("MoSR", "gblocks.0.weight"),
    ("MoESR", "in_to_dim.weight"),
    ("FDAT", "groups.0.blocks.0.inter.cg.1.weight"),
    ("DITN", "UFONE.0.ITLs.0.attn.temperature"),
    ("RCAN", "body.0.body.0.body.3.conv_du.0.weight"),
    ("EDSR", "body.0.body.0.weight"),
    ("Real-CUGAN", "unet1.conv1.conv.0.weight"),
    ("SCUNet", "m_head.0.weight"),
    ("FBCNN", "qf_pred.0.res.0.weight"),
    ("DRUNet", "m_down1.0.res.0.weight"),
    ("NAFNet", "middle_blks.0.beta"),
    ("SwiftSRGAN", "initial.cnn.depthwise.weight"),
    ("SeemoRe", "body.0.local_block.norm_1.weight"),
    ("AuraSR", "mid_block2.block1.proj.weights"),
    ("GFPGAN", "stylegan_decoder.style_mlp.1.weight"),
    ("RestoreFormer or CodeFormer", "quantize.embedding.weight"),
    ("LaMa", "model.model.1.bn_l.running_mean"),
    ("Stable Diffusion", "model.diffusion_model.input_blocks.0.0.weight"),
    ("DnCNN", "model.2.weight"),
)


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> Config:
    """The network's numbers, from the names and shapes of its tensors.

    Raises:
        ModelError: another network, an unknown one, or a variant that does not run here.
    """
    for kind in (RRDBNetConfig, SPANConfig, SRVGGConfig):
        config = kind.from_shapes(shapes)
        if config is not None:
            return config
    other = next((name for name, key in _OTHERS if key in shapes), None)
    if other:
        raise ModelError(f"this is a {other} network; supported are {SUPPORTED}")
    example = min(shapes, key=len)
    raise ModelError(f"not a network that is known here (it has {example[:100]!r}); supported are {SUPPORTED}")
