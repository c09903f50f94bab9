"""The panel's state as the scene keeps it: saved with it, loaded with it, bound to the widgets by their names."""

# No `from __future__ import annotations`: parameterNodeWrapper looks at the types themselves.
import enum
from typing import Annotated, Any

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

DEFAULT_MODEL = "abdomen-ct"
DEFAULT_STEPS = 0  # as many as serve
MOST_STEPS = 5000


class Layers(enum.Enum):
    """What is shown of a result; the values are those of `prompts.show`."""

    MASKS = "masks"
    PROMPTS = "prompts"
    BOTH = "both"

    def label(self) -> str:
        """What the box in the panel says."""
        texts = {Layers.MASKS: _("Masks"), Layers.PROMPTS: _("Prompts"), Layers.BOTH: _("Both")}
        return texts[self]


@parameterNodeWrapper
class Parameters:
    """What the user has chosen.

    Attributes:
        inputVolume: to be segmented.
        model: the name of a model of the engine's.
        skippedOrgans: those whose tick was taken off, of any model; so a new scene or model begins with all.
        outputSegmentation: where the segments go, and what Result and Review are about; None for a new one.
        overwrite: replace also segments of this module that the user edited or checked; off again after each run.
        show3D, layers, confidenceOverlay: how the result is shown.
        trainingVolume, trainingSegmentation: the pair that Add would take.
        newModel: the name of the model to be trained.
        steps: training iterations; 0 leaves them to the engine.
        followCases: the new model shall keep nothing for other patients' sake.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    model: str = DEFAULT_MODEL
    skippedOrgans: list[str]
    outputSegmentation: vtkMRMLSegmentationNode
    overwrite: bool = False
    show3D: bool = False
    layers: Layers = Layers.MASKS
    confidenceOverlay: bool = False
    trainingVolume: vtkMRMLScalarVolumeNode
    trainingSegmentation: vtkMRMLSegmentationNode
    newModel: str
    steps: Annotated[int, WithinRange(0, MOST_STEPS)] = DEFAULT_STEPS
    followCases: bool = False


def parameters_of(parameterNode: Any) -> Parameters:
    """What a parameter node holds.

    What Slicer's wrapper could not read, or would take although it is out of range, gives way to its default: a scene's
    file may have been edited by hand.
    """
    steps, layers = parameterNode.GetParameter("steps"), parameterNode.GetParameter("layers")
    if not (steps.isdecimal() and int(steps) <= MOST_STEPS):
        parameterNode.UnsetParameter("steps")
    if layers not in Layers.__members__:
        parameterNode.UnsetParameter("layers")
    return Parameters(parameterNode)  # type: ignore[call-arg]
