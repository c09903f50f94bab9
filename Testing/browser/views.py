"""The slice and 3D views: how they lie on the page, what they show, and where they look.

Knows MRML nodes and trame-slicer; knows nothing of segmentation runs.
"""

from __future__ import annotations

from typing import Any

from trame.widgets import html
from trame.widgets.vuetify3 import VBtn, VIcon, VSlider
from trame_slicer.app.logic.slice_view_logic import connect_slice_view_slider_to_state
from trame_slicer.core import LayoutManager
from trame_slicer.rca_view import register_rca_factories
from trame_slicer.views import Layout, LayoutDirection, SliceView, ThreeDView, ViewLayoutDefinition
from vtkmodules.vtkCommonCore import vtkCommand

# Frames a second: enough to follow the mouse, and they leave the processor to the engine.
FPS_ACTIVE, FPS_IDLE = 12.0, 4.0
JPEG_QUALITY = 90  # of every picture; with less while the mouse moves, each would be drawn twice
BACKGROUND = ("#0b1017", "#223043")
COLORS = {"Axial": "#f2604d", "Coronal": "#7cc35b", "Sagittal": "#efd64d"}
# The patient's sides at the left, right, upper and lower edge, as Slicer's own slice presets turn them.
SIDES = {"Axial": "RLAP", "Coronal": "RLSI", "Sagittal": "APSI"}


class Views:
    """All views of the page.

    Args:
        server: trame's.
        slicer_app: trame-slicer's SlicerApp.
    """

    def __init__(self, server: Any, slicer_app: Any) -> None:
        self._app = slicer_app
        register_rca_factories(
            slicer_app.view_manager,
            server,
            slice_view_ui_f=_slice_corner,
            three_d_view_ui_f=_three_d_corner,
            target_fps=FPS_ACTIVE,
            blur_fps=FPS_IDLE,
            interactive_quality=JPEG_QUALITY,
        )
        self.layouts = LayoutManager(slicer_app.scene, slicer_app.view_manager, server)
        self.layouts.register_layout_dict(_layouts())
        self.layouts.set_layout("Four views")
        self.fit_at_resize()

    def show_volume(self, volume: Any) -> None:
        """Puts a volume into the slice views and centres them on it."""
        self._app.display_manager.show_volume_in_slice_background(volume)
        for view in self._views():
            view.reset_view()

    def show_organs(self, segmentationNode: Any) -> None:
        """Moves the slices to the middle of a segmentation and centres the 3D view on it."""
        bounds = [0.0] * 6
        segmentationNode.GetRASBounds(bounds)
        for view in self._views():
            if isinstance(view, ThreeDView):
                view.reset_view()
            elif bounds[0] <= bounds[1]:  # else it is empty
                view.get_view_node().JumpSliceByOffsetting(*((bounds[n] + bounds[n + 1]) / 2 for n in (0, 2, 4)))

    def fit_at_resize(self) -> None:
        """Centres each view, its slice kept, as soon as the browser tells it a new size: before the first one, and
        when the page moves its parts, it has no size that could be kept.
        """
        for view in self._views():
            _fit_once(view)

    def draw(self) -> None:
        """Draws every view once, soon."""
        for view in self._views():
            view.schedule_render()

    def _views(self) -> list[Any]:
        return list(self._app.view_manager.get_views())


def _layouts() -> dict[str, Layout]:
    axial, coronal, sagittal = (
        ViewLayoutDefinition.slice_view(name, label=tag, color=COLORS[name])  # type: ignore[arg-type]
        for name, tag in (("Axial", "Red"), ("Coronal", "Green"), ("Sagittal", "Yellow"))
    )
    solid = ViewLayoutDefinition.threed_view(background_color=BACKGROUND)
    row, column = LayoutDirection.Horizontal, LayoutDirection.Vertical
    return {
        "Four views": Layout(column, [Layout(row, [axial, solid]), Layout(row, [sagittal, coronal])]),
        "Axial and 3D": Layout(row, [axial, solid]),
        "Axial": Layout(row, [axial]),
        "3D": Layout(row, [solid]),
    }


def _fit_once(view: Any) -> None:
    def on_resize(*_: Any) -> None:
        view.interactor().RemoveObserver(tag)
        place = view.get_slice_value() if isinstance(view, SliceView) else 0.0
        view.reset_view()
        if isinstance(view, SliceView):
            view.set_slice_value(place)

    tag = view.interactor().AddObserver(vtkCommand.WindowResizeEvent, on_resize)


def _slice_corner(server: Any, view_id: str, view: Any) -> None:
    """Name, position and slider of a slice view."""
    slider = connect_slice_view_slider_to_state(server, view)
    name = view.get_orientation()
    with html.Div(classes="view-head"):
        html.Span(name, classes="view-name", style=f"border-color: {COLORS.get(name, '#888')}")
        html.Span(f"{{{{ Number({slider.name.value}).toFixed(1) }}}} mm", classes="view-place")
    for edge, letter in zip(("left", "right", "top", "bottom"), SIDES.get(name, ""), strict=False):
        html.Div(letter, classes=f"view-side {edge}")
    _reset_button(view)
    VSlider(
        classes="view-slider",
        v_model=(slider.name.value,),
        min=(slider.name.min_value,),
        max=(slider.name.max_value,),
        step=(slider.name.step,),
        hide_details=True,
        density="compact",
        color=COLORS.get(name, "#888"),
        track_size=2,
        thumb_size=12,
    )


def _three_d_corner(server: Any, view_id: str, view: Any) -> None:
    with html.Div(classes="view-head"):
        html.Span("3D", classes="view-name", style="border-color: #6f8fd8")
    with html.Div(v_if="!show_3d || !has_result", classes="view-hint"):
        html.Span("{{ has_result ? 'Switch on Show 3D to see the organs' : 'The organs appear here after a run' }}")
    _reset_button(view)


def _reset_button(view: Any) -> None:
    with VBtn(icon=True, size="x-small", variant="text", click=view.reset_view, classes="view-reset", title="Centre"):
        VIcon("mdi-fit-to-screen-outline", color="#c9d3e0")
