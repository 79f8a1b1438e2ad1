"""The options that several commands share, each spelled once: its names, its type and its help.

Defaults stand in the commands' signatures, because they differ. An option of one command alone stays there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# --- the model and its weights ------------------------------------------------------------------------------------

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A model of timm, a Vision Mamba (vim_tiny, vim_small, vim_base) or one of the zoo (tiny_vit, "
        "tiny_resnet, tiny_vim).",
    ),
]
Pretrained = Annotated[bool, typer.Option(help="Load the published weights.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Load weights from a file.")]
UseEma = Annotated[
    bool | None,
    typer.Option("--use-ema/--no-use-ema", help="Of a checkpoint with averaged weights. [default: the published]"),
]
NumClasses = Annotated[
    int | None,
    typer.Option(help="Classes of the model; another number than its own is a new classifier. [default: its own]"),
]

ImgSize = Annotated[int | None, typer.Option(help="Pixels a side of the images. [default: the model's for tests]")]
InputSize = Annotated[
    tuple[int, int, int] | None,
    typer.Option(help="Channels, rows and columns, for images that are not square.", show_default=False),
]
ModelKwargs = Annotated[
    list[str] | None, typer.Option(help="Further settings of the model, as key=value.", show_default=False)
]

Attention = Annotated[
    str | None,
    typer.Option(
        help="What computes attention, in all models alike: sdpa (torch's choice), eager (holds the maps), or one of "
        "flash, efficient, cudnn, math, flash2 to flash4, flex; see repshift env. [default: as the model has it]"
    ),
]

# --- what is pruned, and by what ----------------------------------------------------------------------------------

Drop = Annotated[
    str | None,
    typer.Option(help="What goes after which block or stage, as 0.2@0,3,6 or 8@0;4@1. [default: nothing]"),
]
DropR = Annotated[  # --drop_r is how the paper writes it
    str | None, typer.Option("--drop-r", "--drop_r", help="The same as a list, one share a block: [0.2,0,...].")
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="A file that says all of this, as Recipe.save writes it, or results in JSON of one recipe; instead of "
        "--drop and what goes with it.",
    ),
]
Operation = Annotated[
    str | None, typer.Option(help="Whose change counts: attn, mlp, block, stage or mixer. [default: the model's]")
]
Distance = Annotated[str, typer.Option(help="l2, l1 or cosine.")]
Residual = Annotated[bool, typer.Option(help="Compare x + F(x) with x instead of F(x) with x.")]
Score = Annotated[
    str,
    typer.Option(help="What --drop goes by: shift, norm, random, cls_attention, mean_attention or oracle_free."),
]
Methods = Annotated[
    str | None,
    typer.Option(
        help="What is compared at one schedule, with commas: dense, shift, norm, random, cls_attention, "
        "mean_attention, oracle_free; pruners: mnn, mnn1, tome, ward, saliency_merge, cells, even and so on; lowres, "
        "the dense model on a smaller input of no more GMACs.",
    ),
]
Seeds = Annotated[int | None, typer.Option(help="Draws of the random score, whose mean and spread are shown.")]
Pruner = Annotated[
    str | None,
    typer.Option(help="tokens, lines, positions, cells, mnn, tome and so on. [default: what suits the model]"),
]
Compare = Annotated[
    list[Path] | None,
    typer.Option(help="A recipe that is compared, too, by the name of its file; repeated for several."),
]
Against = Annotated[
    list[str] | None,
    typer.Option(
        help="Compare each image by image with this method, or with what lies between two at its GMACs (A..B); "
        "repeated for several. [default: shift and lowres; of videos the dense model]"
    ),
]
Keep = Annotated[str, typer.Option(help="top keeps the highest scores; bottom is the control.")]

# --- the data -----------------------------------------------------------------------------------------------------

Data = Annotated[
    str,
    typer.Argument(metavar="[DIR]", help="Folder of class folders, tar file, or cluttered-mnist, which ships."),
]
Dataset = Annotated[
    str,
    typer.Option(help="torch/NAME or hfds/NAME in the data's folder, instead of class folders.", show_default=False),
]
Split = Annotated[str, typer.Option(help="Name of the split.")]
ClassMap = Annotated[str | None, typer.Option(help="File of all the model's class names, one a line; or imagenet-1k.")]
LabelsFile = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        help="File of labels, for images that lie in no class folders: one label a line, or file and label. "
        "ImageNet's ILSVRC2012_validation_ground_truth.txt, Kaggle's LOC_val_solution.csv, Caffe's val.txt.",
        show_default=False,
    ),
]
Suffixes = Annotated[
    str | None, typer.Option(help="Endings of the images' files, as .jpg,.tif. [default: .jpg,.jpeg,.png]")
]
SkipOtherFiles = Annotated[
    bool, typer.Option("--skip-other-files", help="Leave out files of other endings, and say so, instead of stopping.")
]
NumSamples = Annotated[
    int | None, typer.Option(help="Take so many samples, evenly spread; of a stream the first. [default: all]")
]
Digits = Annotated[
    Path | None, typer.Option(help="For cluttered-mnist: folder with MNIST's t10k files. [default: download]")
]

# --- videos -------------------------------------------------------------------------------------------------------

VideoModel = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A model of videos and texts: umt_b_retrieval, umt_l_retrieval or tiny_umt finds, umt_b_qa, umt_l_qa or "
        "tiny_umt_qa answers; or the folder of one.",
    ),
]
VideosFolder = Annotated[Path, typer.Argument(help="Folder that the paths in it are under.")]
Vocabulary = Annotated[
    Path, typer.Option("--vocab", help="vocab.txt of the text encoder (bert-base-uncased, bert-large-uncased).")
]
Frames = Annotated[
    int | None, typer.Option(min=1, help="Frames of each video. [default: the data set's, else the model's]")
]
VideoMethods = Annotated[
    str | None,
    typer.Option(
        "--methods",
        help="What is compared with the dense model at one schedule, with commas: shift, norm, random, "
        "mean_attention; pruners: mnn, tome, saliency_merge, frames and so on; fewer_frames, the dense model on as "
        "many frames as come to no more GMACs.",
    ),
]
CompareDense = Annotated[bool, typer.Option("--compare-dense", help="Measure the dense model, too.")]
FeaturesFolder = Annotated[
    Path | None,
    typer.Option(
        "--features",
        help="Keep what models say of each video here, for later runs; needs gigabytes. [default: beside the results "
        "file until the end]",
    ),
]

# --- how it runs --------------------------------------------------------------------------------------------------

BatchSize = Annotated[int, typer.Option("--batch-size", "-b", help="Images a process and step.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-j",
        help="Processes that load images, for each that computes. [default: beside a GPU as many as there are "
        "processors for, at most 8; on a CPU none]",
        show_default=False,
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda. [default: a GPU if there is one]")]
Amp = Annotated[bool, typer.Option("--amp", help="Compute in mixed precision.")]
AmpDtype = Annotated[str, typer.Option(help="float16 or bfloat16, for --amp; training in float16 takes a GPU.")]
ChannelsLast = Annotated[bool, typer.Option("--channels-last", help="Channels last in memory.")]
Torchcompile = Annotated[bool, typer.Option("--torchcompile", help="Compile the models.")]
OnError = Annotated[str, typer.Option(help="stop at an unreadable image, or skip and count it.")]
Retry = Annotated[bool, typer.Option("--retry", help="Try smaller batches when memory runs out.")]

# --- what is written ----------------------------------------------------------------------------------------------

ResultsFolder = Annotated[Path, typer.Option(help="Folder for the numbers and the figures.")]
WeightsFolder = Annotated[
    Path, typer.Option(help="Folder for the weights, their summary and the state to resume from.")
]
FigureFile = Annotated[Path, typer.Option(help="The figure; its ending names the format.")]
ResultsFile = Annotated[Path | None, typer.Option(help="Write the results here, with what they were measured with.")]
Resume = Annotated[
    bool | None,
    typer.Option("--resume/--no-resume", help="Go on with the unfinished run of --results-file, or begin anew."),
]
PerImage = Annotated[
    Path | None, typer.Option(help="Write what was found of each image here, a line each image and method.")
]
ResultsFormat = Annotated[str | None, typer.Option(help="csv, json or md. [default: the file's ending, else csv]")]
