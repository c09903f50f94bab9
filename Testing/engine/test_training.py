"""Adapting a model: data layouts, which slices count, the loop, resume, honest splits, losses by hand."""

import argparse
import errno
import json
import os
import re
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from choosing import choose_samples
from pgpsam.errors import Cancelled, UserError
from pgpsam.labels import LabelSet
from pgpsam.models.store import load_model, load_spec, save_model
from pgpsam.network.base import Distillation, Output
from pgpsam.network.methods import METHODS, build_network, make_settings
from pgpsam.segmenter import Segmenter
from pgpsam.slices import Preparation, frame_volume, scale_labels
from pgpsam.training.augment import Augmentation, Augmenter, ContrastAgent, CropFieldOfView, Distract
from pgpsam.training.batches import Order
from pgpsam.training.card import copy_pictures, model_card
from pgpsam.training.choice import SliceChoice
from pgpsam.training.commands import evaluate_main, finetune_main, settings_of
from pgpsam.training.course import learning_rate
from pgpsam.training.curves import Curves
from pgpsam.training.data import IGNORED, annotated_slices, load_case, read_dataset, read_slice_list
from pgpsam.training.finetune import finetune, make_optimizer
from pgpsam.training.losses import class_weights, distillation_loss, segmentation_loss, total_loss
from pgpsam.training.recipes import going_on, recipe, usual_iterations
from pgpsam.training.resuming import run_key
from pgpsam.training.run import finish, split_cases, train_on_dataset
from pgpsam.training.scoring import evaluate, unlabelled_between
from pgpsam.training.selftraining import CONFIDENT_NOTHING, CONFIDENT_ORGAN, Teacher, guessed_samples, load_teacher
from pgpsam.volume import Volume


def test_folder_layout(phantoms):
    dataset = read_dataset(phantoms)
    assert [case.name for case in dataset.cases] == ["case_0", "case_1", "case_2"]
    assert dataset.labels.names == ("spleen", "liver")
    assert dataset.validation == ("case_2",)


@pytest.mark.parametrize("support", [True, False])
def test_prototypes_start_at_the_annotated_slices_or_at_random(phantoms, tmp_path, quick_settings, support):
    """With a rate of 0 the model stays where it started: near the classes' own features, or anywhere."""
    dataset = read_dataset(phantoms)
    settings = replace(quick_settings, iterations=1, lr=0.0, published_lr=0.0, start_from_support=support)
    samples = choose_samples(dataset, dataset.select(["case_0"]), SliceChoice(), settings)
    network = Segmenter.load(
        str(finetune(samples, dataset.labels, settings, tmp_path / "model", name="m", device="cpu"))
    ).network
    intra, inter = network.prototypes.intra.detach(), network.prototypes.inter.detach()
    likeness = torch.cosine_similarity(inter.unflatten(0, (len(intra), -1)), intra[:, None], dim=-1)
    assert (likeness.mean() > 0.5) == support, likeness


def test_nnunet_layout(phantoms, tmp_path):
    for part, ours in (("imagesTr", "images"), ("labelsTr", "labels")):
        (tmp_path / part).mkdir()
        for file in (phantoms / ours).iterdir():
            name = file.name.replace(".nii.gz", "_0000.nii.gz") if part == "imagesTr" else file.name
            shutil.copy(file, tmp_path / part / name)
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "liver": 6, "spleen": 1}}')
    assert [case.name for case in read_dataset(tmp_path).cases] == ["case_0", "case_1", "case_2"]


def test_labels_that_carry_their_own_names(phantoms, tmp_path):
    from pgpsam.labels import LabelSet
    from pgpsam.volume import read_labels_on, read_volume, write_array

    label_set = LabelSet.from_names({"liver": 6, "spleen": 1})
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    shutil.copy(phantoms / "images" / "case_0.nii.gz", tmp_path / "images")
    volume = read_volume(phantoms / "images" / "case_0.nii.gz")
    labels = read_labels_on(volume, phantoms / "labels" / "case_0.nii.gz")
    write_array(tmp_path / "labels" / "case_0.seg.nrrd", labels, volume, "labels", label_set)
    dataset = read_dataset(tmp_path)
    assert sorted(dataset.labels.names) == ["liver", "spleen"]
    loaded = load_case(dataset.cases[0], dataset.labels)
    index = dataset.labels.names.index("liver") + 1
    assert np.array_equal(loaded.labels == index, labels == 6)


def test_slices_without_labels_are_unannotated_unless_told(phantoms):
    dataset = read_dataset(phantoms)
    case = load_case(dataset.cases[0], dataset.labels)
    assert annotated_slices(case, None, fully_annotated=False) == [1, 2, 3, 4]
    assert annotated_slices(case, None, fully_annotated=True) == [0, 1, 2, 3, 4, 5]
    assert annotated_slices(case, [0, 3], fully_annotated=False) == [0, 3]
    with pytest.raises(UserError, match="has no slice 6"):
        annotated_slices(case, [6], fully_annotated=False)


def test_slice_numbers_count_along_the_files_own_axis(phantoms, tmp_path):
    """In a file stored from head to feet, slice 0 is the uppermost."""
    import nibabel

    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        stored = nibabel.load(phantoms / part / "case_0.nii.gz")
        affine = stored.affine @ np.diag([1, 1, -1, 1]) + np.outer(stored.affine[:, 2], [0, 0, 0, 5])
        flipped = np.asarray(stored.dataobj)[:, :, ::-1]
        nibabel.save(nibabel.Nifti1Image(flipped, affine), tmp_path / part / "case_0.nii.gz")
    shutil.copy(phantoms / "dataset.json", tmp_path)
    dataset = read_dataset(tmp_path)
    assert annotated_slices(load_case(dataset.cases[0], dataset.labels), [0], False) == [5]


@pytest.mark.parametrize(
    ("text", "message"),
    [("case,slice\na,one\n", "line 2"), ("a,b\n1,2\n", "columns"), (None, "No such file")],
)
def test_slice_lists_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "list.csv"
    if text:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_slice_list(path)


def test_choices_by_list_fraction_and_number(phantoms, tmp_path, quick_settings):
    dataset = read_dataset(phantoms)
    cases = dataset.select(["case_0", "case_1"])
    (tmp_path / "list.csv").write_text("case,slice\ncase_0,0\ncase_0,2\ncase_2,3\n")
    listed = choose_samples(dataset, cases, SliceChoice(listed=tmp_path / "list.csv"), quick_settings)
    assert [(s.case, s.index) for s in listed] == [("case_0", 0), ("case_0", 2)]
    assert len(choose_samples(dataset, cases, SliceChoice(fraction=0.5), quick_settings)) == 4
    shots = choose_samples(dataset, cases, SliceChoice(shots=3, fully_annotated=True), quick_settings)
    assert len(shots) == 3
    assert all(s.labels.any() for s in shots)
    text = SliceChoice(listed=tmp_path / "list.csv").text
    assert text.startswith("slices of list.csv (SHA-256 ")
    (tmp_path / "list.csv").write_text("case,slice\ncase_0,0\n")
    assert SliceChoice(listed=tmp_path / "list.csv").text != text  # another list of that name
    with pytest.raises(UserError, match="cannot read the slice list"):
        _ = SliceChoice(listed=tmp_path / "none.csv").text
    with pytest.raises(UserError, match="only 8 slices"):
        choose_samples(dataset, cases, SliceChoice(shots=99), quick_settings)
    with pytest.raises(UserError, match="not by several"):
        SliceChoice(fraction=0.1, shots=5)


def test_a_patient_is_trained_on_or_held_out_never_both(phantoms):
    dataset = read_dataset(phantoms)
    training, held = split_cases(dataset, None)
    assert {c.name for c in training} == {"case_0", "case_1"}
    assert {c.name for c in held} == {"case_2"}
    with pytest.raises(UserError, match="no case named nobody"):
        split_cases(dataset, ["nobody"])
    with pytest.raises(UserError, match="every case is held out"):
        split_cases(dataset, ["case_0", "case_1", "case_2"])


def test_every_filled_slice_comes_once_a_round(phantoms, quick_settings):
    dataset = read_dataset(phantoms)
    samples = choose_samples(dataset, dataset.cases, SliceChoice(fully_annotated=True), quick_settings)
    filled = {i for i, s in enumerate(samples) if s.labels.any()}
    order = Order(samples, 0.0, seed=0)
    assert sorted(order[i] for i in range(len(filled))) == sorted(filled)
    assert [order[i] for i in range(50)] == [Order(samples, 0.0, seed=0)[i] for i in range(50)]
    many = Order(samples, 0.25, seed=0)
    assert np.mean([many[i] not in filled for i in range(160)]) == pytest.approx(0.25, abs=0.05)


def test_guessed_slices_come_in_their_share(phantoms, quick_settings):
    dataset = read_dataset(phantoms)
    samples = choose_samples(dataset, dataset.cases, SliceChoice(), quick_settings)
    samples = [replace(s, guessed=i >= 4) for i, s in enumerate(samples)]
    order = Order(samples, 0.0, seed=0, guessed_share=0.5)
    turn = [order[i] for i in range(8)]
    assert sorted(i for i in turn if i < 4) == [0, 1, 2, 3]
    assert len({i for i in turn if i >= 4}) == 4
    with pytest.raises(UserError, match="none of the annotated slices"):
        Order(samples[4:], 0.0, seed=0)


def test_learning_rate_warms_up_and_falls_to_almost_nothing():
    rates = [learning_rate(i, 100, 10) for i in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5, abs=0.01)
    assert rates[-1] < 0.002


def test_loss_of_a_hand_worked_example():
    # Two pixels, two classes; logits give p(class 1) = 0.75 at both; the truth is class 1, then class 0.
    logits = torch.tensor([0.0, np.log(3.0)])[None, :, None, None].expand(1, 2, 1, 2)
    labels = torch.tensor([[[1, 0]]])
    entropy = -(np.log(0.75) + np.log(0.25)) / 2
    dice = 1 - (2 * 0.75 + 1) / (1 + 1.5 + 1)  # smoothed by one in both
    assert segmentation_loss(logits, labels).item() == pytest.approx(0.5 * entropy + 0.5 * dice, abs=1e-5)
    assert segmentation_loss(logits, labels, dice_weight=0.8).item() == pytest.approx(
        0.2 * entropy + 0.8 * dice, abs=1e-5
    )


def test_what_nobody_knows_counts_in_no_loss():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 6), torch.randint(0, 3, (2, 4, 6))
    unknown = labels.clone()
    unknown[:, :, 3:] = IGNORED
    whole = segmentation_loss(logits[..., :3], labels[..., :3], torch.tensor([1.0, 2.0, 3.0]), 0.8)
    assert segmentation_loss(logits, unknown, torch.tensor([1.0, 2.0, 3.0]), 0.8).item() == pytest.approx(whole.item())
    coarse = (logits[..., ::2, ::2],)
    total_loss(Output(logits.requires_grad_(), coarse), unknown, 0.6).backward()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[..., 1::2, 3:].any()  # not even where only the last pass looks


def test_a_batch_of_which_nothing_is_known_teaches_nothing():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((2, 4, 4), IGNORED))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_class_weights_of_a_hand_worked_example():
    # Shares 0.64, 0.04, 0.32 and none: to the power -1/2 they are 1.25, 5, 1.7678; their mean over pixels 1.5657.
    weights = class_weights(torch.tensor([64, 4, 32, 0]), 0.5)
    expected = torch.tensor([1.25, 5.0, 0.32**-0.5, 5.0])
    expected = expected / (0.64 * 1.25 + 0.04 * 5 + 0.32 * 0.32**-0.5)
    assert torch.allclose(weights, expected)
    assert torch.allclose(class_weights(torch.tensor([64, 4, 32, 0]), 0.0), torch.ones(4))


def test_passes_are_weighed():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, :2] = 1
    good = torch.stack([1.0 - 2.0 * labels, 2.0 * labels - 1.0], 1) * 10
    bad = -good
    only_final = total_loss(Output(good, (bad,)), labels, 1.0)
    assert only_final < 0.01
    assert total_loss(Output(good, (bad,)), labels, 0.6) == pytest.approx(
        0.6 * segmentation_loss(good, labels) + 0.4 * segmentation_loss(bad, labels)
    )


def test_passes_of_several_sizes_each_learn_at_their_own():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, :2] = 1
    right = torch.stack([1.0 - 2.0 * labels, 2.0 * labels - 1.0], 1) * 10
    small = right[..., ::2, ::2]
    assert total_loss(Output(right, (right, small)), labels, 0.5) < 0.01
    assert total_loss(Output(right, (right, -small)), labels, 0.5) == pytest.approx(
        0.25 * segmentation_loss(-small, labels[:, ::2, ::2]).item(), abs=1e-3
    )


def test_distillation_of_a_hand_worked_example():
    # T = 2: the teacher's logits (2 ln 3, 0) are softened to shares (3/4, 1/4), the student's (0, 0) to halves.
    teacher = torch.tensor([2 * np.log(3.0), 0.0])[None, :, None, None].expand(1, 2, 1, 3).clone().requires_grad_()
    student = torch.zeros(1, 2, 1, 3, requires_grad=True)
    divergence = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    loss = distillation_loss(Distillation(student, teacher, 0.5, 2.0))
    assert loss.item() == pytest.approx(0.5 * 4 * divergence, abs=1e-5)
    loss.backward()
    assert teacher.grad is None
    assert student.grad.norm() > 0
    labels = torch.zeros(1, 1, 3, dtype=torch.long)
    plain = total_loss(Output(student, (student,)), labels, 0.5)
    taught = total_loss(Output(student, (student,), distillation=Distillation(student, teacher, 0.5, 2.0)), labels, 0.5)
    assert (taught - plain).item() == pytest.approx(0.5 * loss.item(), abs=1e-5)  # as the first pass's own loss


def test_augmentation_never_flips_and_never_invents_labels():
    image = torch.zeros(1, 60, 100)
    labels = torch.zeros(60, 100, dtype=torch.uint8)
    labels[20:40, 10:35], labels[20:40, 70:80] = 6, 1
    image[0][labels == 6], image[0][labels == 1] = 0.5, 0.9
    augment = Augmenter((80, 112), Augmentation())
    for seed in range(20):
        augment.restart(seed)
        shown, varied = augment(image, labels)
        assert shown.shape == (3, 80, 112)
        assert set(varied.unique().tolist()) <= {0, 1, 6}
        right, left = (varied == 6).nonzero()[:, 1].float(), (varied == 1).nonzero()[:, 1].float()
        assert right.mean() < left.mean()
        assert 0 <= shown.min() <= shown.max() <= 1


def test_augmentation_can_be_repeated():
    image, labels = torch.rand(1, 60, 100), torch.zeros(60, 100, dtype=torch.uint8)
    augment = Augmenter((56, 112), Augmentation())
    augment.restart(3)
    first = augment(image, labels)[0]
    augment(image, labels)
    augment.restart(3)
    assert torch.equal(augment(image, labels)[0], first)


def test_training_lowers_the_loss_and_writes_a_whole_model(quick_model, quick_settings):
    names = {path.name for path in quick_model.iterdir()}
    assert names == {"model.json", "adapter.safetensors", "curves.csv"}
    rows = (quick_model / "curves.csv").read_text().splitlines()[1:]
    losses = [float(row.split(",")[1]) for row in rows]
    assert len(losses) == quick_settings.iterations
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    spec = json.loads((quick_model / "model.json").read_text())
    assert spec["training"]["cases"] == ["case_0", "case_1"]
    assert spec["training"]["slices"] == 8


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(phantoms, quick_model, quick_settings, tmp_path):
    dataset = read_dataset(phantoms)
    samples = choose_samples(dataset, dataset.select(["case_0", "case_1"]), SliceChoice(), quick_settings)
    calls = iter(range(100))
    with pytest.raises(Cancelled, match="iteration 5"):
        finetune(
            samples, dataset.labels, quick_settings, tmp_path, name="quick", device="cpu",
            cancelled=lambda: next(calls) == 4,
        )  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"training.pt", "curves.csv"}
    # Nor with other slices: it has learned from the first ones, and may be scored on their patient now.
    corrected = [replace(samples[0], labels=samples[0].labels.flip(1)), *samples[1:]]
    for those, settings in (
        (samples, replace(quick_settings, lr=1.0)),
        (samples[1:], quick_settings),
        (corrected, quick_settings),
    ):
        with pytest.raises(UserError, match="other settings, slices or labels"):
            finetune(those, dataset.labels, settings, tmp_path, name="quick", device="cpu", resume=True)
    finetune(samples, dataset.labels, quick_settings, tmp_path, name="quick", device="cpu", resume=True)
    straight, resumed = (load_file(f / "adapter.safetensors") for f in (quick_model, tmp_path))
    assert straight.keys() == resumed.keys()
    for name, value in straight.items():
        assert torch.allclose(value.float(), resumed[name].float(), atol=2e-3), name
    curves = (np.loadtxt(f / "curves.csv", delimiter=",", skiprows=1)[:, :4] for f in (quick_model, tmp_path))
    np.testing.assert_allclose(*curves, rtol=1e-3)  # all but the seconds


def test_a_stopped_run_does_not_go_on_from_another_model(phantoms, quick_model, quick_settings, tmp_path):
    """Its model would name the other one, and have its refiner, but not its weights."""
    dataset = read_dataset(phantoms)
    start, out = shutil.copytree(quick_model, tmp_path / "start"), tmp_path / "m"
    settings = replace(quick_settings, iterations=2, start_from=str(start))
    samples = choose_samples(dataset, dataset.cases[:1], SliceChoice(), settings)
    with pytest.raises(Cancelled):
        finetune(samples, dataset.labels, settings, out, name="m", device="cpu", cancelled=lambda: True)
    spec, tensors = load_model(start)
    save_model(start, spec, {name: value + 1 for name, value in tensors.items()})
    with pytest.raises(UserError, match="other settings, slices or labels"):
        finetune(samples, dataset.labels, settings, out, name="m", device="cpu", resume=True)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot limit the size of a process's files")
@pytest.mark.parametrize("asked", [False, True])
def test_a_state_that_the_disk_refuses_costs_a_training_nothing_but_its_stop(
    phantoms, quick_settings, tmp_path, monkeypatch, caplog, asked
):
    """A limit on the size of files stands in for the disk, but for the last step, which makes the model."""
    import resource

    monkeypatch.setattr("pgpsam.training.finetune.CHECKPOINT_SECONDS", 0.0)
    before, iterations = resource.getrlimit(resource.RLIMIT_FSIZE), 3
    dataset = read_dataset(phantoms)
    settings = replace(quick_settings, iterations=iterations)
    samples = choose_samples(dataset, dataset.cases[:1], SliceChoice(), settings)

    def limit(news):
        bytes_ = before[0] if news.iteration == iterations else 50_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, before[1]))
        assert [path.name for path in tmp_path.iterdir()] == ["curves.csv"]  # nothing of the state before

    common = {"name": "m", "device": "cpu", "progress": limit, "cancelled": lambda: asked}
    refused = f"cannot save the state of the training in {tmp_path}: it could not be written whole"
    try:
        if asked:
            with pytest.raises(UserError, match=re.escape(refused)):
                finetune(samples, dataset.labels, settings, tmp_path, **common)
            assert [path.name for path in tmp_path.iterdir()] == ["curves.csv"]
        else:
            finetune(samples, dataset.labels, settings, tmp_path, **common)
            assert load_model(tmp_path)[0].name == "m"
            assert caplog.text.count(f"the training goes on: {refused}") == iterations - 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_disk_that_is_full_before_the_first_step_is_named():
    with pytest.raises(UserError, match=r"^cannot write /dev/full: No space left on device\. Check the free space$"):
        Curves(Path("/dev/full"), 0)


def test_a_line_that_the_disk_refuses_is_written_with_the_next_one(tmp_path, monkeypatch, caplog):
    curves, refused = Curves(tmp_path / "curves.csv", 0), []

    def full(self, *rest, **more):
        refused.append(self)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    curves.add(1, 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        patch.setattr(Path, "write_text", full)
        curves.add(2, 0.4)
        curves.add(3, 0.3)
    assert len(refused) == 2
    assert caplog.text.count(f"the training goes on: cannot write {tmp_path / 'curves.csv'}: No space left") == 1
    curves.add(4, 0.2)
    curves.add(5, 0.1)
    rows = (tmp_path / "curves.csv").read_text(encoding="utf-8").splitlines()
    assert rows[1:] == ["1,0.5", "2,0.4", "3,0.3", "4,0.2", "5,0.1"]


def test_a_run_that_is_stopped_while_it_is_scored_goes_on_there(phantoms, quick_settings, tmp_path, monkeypatch):
    dataset, settings = read_dataset(phantoms), replace(quick_settings, iterations=1)

    def run(**more):
        return train_on_dataset(dataset, tmp_path / "m", settings, SliceChoice(), device="cpu", **more)

    def stop(case, step):
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        run(scoring=stop)
    assert not load_spec(tmp_path / "m").scores
    with pytest.raises(UserError, match="m was trained with other settings, slices or labels than now") as caught:
        train_on_dataset(dataset, tmp_path / "m", settings, SliceChoice(shots=2), device="cpu", resume=True)
    assert caught.value.hint == "Give the same ones, or train anew with --overwrite instead of --resume."
    told = tmp_path / "m" / "model.json"
    spec = json.loads(told.read_text(encoding="utf-8"))
    for word in ("start_share", "labels_crc32"):  # as an earlier version wrote it
        del spec["training"][word]
    told.write_text(json.dumps(spec), encoding="utf-8")
    trained = (tmp_path / "m" / "adapter.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("pgpsam.training.run.finetune", None)
        summary = run(resume=True)
    assert [case["case"] for case in summary["cases"]] == ["case_2"]
    assert load_spec(tmp_path / "m").scores["split"] == ["case_2"]
    assert (tmp_path / "m" / "adapter.safetensors").read_bytes() == trained


def test_choosing_and_preparing_hold_one_volume_at_a_time(phantoms, quick_settings, monkeypatch):
    """A data set may be larger than the memory."""
    dataset, alive = read_dataset(phantoms), []

    def watch(case, labels):
        before = sum(one() is not None for one in alive)
        assert before <= 1, "the loop's own"
        loaded = load_case(case, labels)
        alive.append(weakref.ref(loaded))
        return loaded

    for room in ("choice", "run"):
        monkeypatch.setattr(f"pgpsam.training.{room}.load_case", watch)
    choose_samples(dataset, dataset.cases, SliceChoice(shots=3), quick_settings)
    assert len(alive) >= 4


def test_resume_without_a_stopped_run(phantoms, quick_settings, tmp_path):
    dataset = read_dataset(phantoms)
    samples = choose_samples(dataset, dataset.cases[:1], SliceChoice(), quick_settings)
    with pytest.raises(UserError, match="nothing to resume"):
        finetune(samples, dataset.labels, quick_settings, tmp_path, name="x", device="cpu", resume=True)


def test_a_short_run_that_goes_on_leaves_the_encoder_as_it_is(phantoms, quick_model, quick_settings, tmp_path):
    assert going_on(recipe("pgsam", 100), ("liver",), ("liver",)).keep_encoder
    assert not going_on(recipe("pgsam", 1000), ("liver",), ("liver",)).keep_encoder
    assert going_on(recipe("pgsam", 100), ("liver",), ("spleen",)).keep_encoder
    dataset = read_dataset(phantoms)
    samples = choose_samples(dataset, dataset.cases[:1], SliceChoice(), quick_settings)
    settings = replace(quick_settings, iterations=3, lr=1e-2, start_from=str(quick_model), keep_encoder=True)
    more = {"name": "m", "device": "cpu"}
    with pytest.raises(Cancelled):
        finetune(samples, dataset.labels, settings, tmp_path / "m", **more, cancelled=lambda: True)
    finetune(samples, dataset.labels, settings, tmp_path / "m", **more, resume=True)
    first, second = (load_file(f / "adapter.safetensors") for f in (quick_model, tmp_path / "m"))
    assert first.keys() == second.keys()
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed
    assert not any(name.startswith("encoder.") for name in changed)
    told = load_spec(tmp_path / "m").training
    assert told["keep_encoder"]
    assert told["cost"]["trained_parameters"] == sum(v.numel() for k, v in first.items() if "encoder." not in k)


def test_the_large_parts_of_the_decoder_can_stay_as_they_are(phantoms, quick_model, quick_settings, tmp_path):
    dataset = read_dataset(phantoms)
    samples = choose_samples(dataset, dataset.cases[:1], SliceChoice(), quick_settings)
    settings = replace(quick_settings, iterations=2, lr=1e-2, start_from=str(quick_model), keep_decoder=True)
    finetune(samples, dataset.labels, settings, tmp_path / "m", name="m", device="cpu")
    first, second = (load_file(f / "adapter.safetensors") for f in (quick_model, tmp_path / "m"))
    assert first.keys() == second.keys()
    kept = {name for name in first if torch.equal(first[name], second[name])}
    large = {n for n in first if n.startswith(("decoder.transformer.", "decoder.hypernetworks.weights"))}
    assert large
    assert large <= kept
    assert any(name.startswith("encoder.") for name in first.keys() - kept)
    assert any(name.startswith("decoder.") for name in first.keys() - kept)
    told = load_spec(tmp_path / "m").training
    assert told["keep_decoder"]
    assert told["cost"]["trained_parameters"] == sum(v.numel() for k, v in first.items() if k not in large)
    probe = replace(quick_settings, method="probe", settings={}, augmentation=None, keep_decoder=True)
    with pytest.raises(UserError, match="method probe has no decoder of SAM's"):
        finetune(samples, dataset.labels, probe, tmp_path / "probe", name="probe", device="cpu")
    assert not (tmp_path / "probe").exists()


def test_new_organs_are_learned_at_full_rates():
    usual = recipe("pgsam")
    learned = going_on(usual, ("liver", "spleen"), ("liver", "lesion"))
    assert learned == replace(usual, keep_encoder=True, replay=4)
    long = recipe("pgsam", 1000)
    assert going_on(long, ("liver", "spleen"), ("liver", "lesion")) == long
    assert going_on(usual, ("liver", "spleen"), ("liver",)) == going_on(usual, ("liver", "spleen"), ("spleen", "liver"))
    assert going_on(usual, ("liver", "right kidney"), ("Liver", "kidney_right")).start_share == 0.5
    mixing = recipe("pgp")  # its prototypes begin anew with another selection of organs
    assert going_on(mixing, ("liver", "spleen"), ("liver",)) == mixing
    assert going_on(mixing, ("liver", "spleen"), ("liver", "spleen")).start_share == 0.5


def test_from_a_data_set_to_a_scored_model(phantoms, quick_settings, tmp_path):
    settings = replace(quick_settings, iterations=2)
    summary = train_on_dataset(read_dataset(phantoms), tmp_path / "m", settings, SliceChoice(), device="cpu")
    assert [case["case"] for case in summary["cases"]] == ["case_2"]
    spec = json.loads((tmp_path / "m" / "model.json").read_text())
    assert spec["scores"]["split"] == ["case_2"]
    assert spec["scores"]["looks"] == 2
    assert "which it was not trained on, every slice, looked at twice:" in (tmp_path / "m" / "CARD.md").read_text()
    assert (tmp_path / "m" / "validation" / "scores.html").is_file()
    assert (tmp_path / "m" / "validation" / "confidence.html").is_file()
    card = (tmp_path / "m" / "CARD.md").read_text()
    for picture in ("validation/failures.png", "validation/confidence.png"):
        assert f"({picture})" in card
        assert Image.open(tmp_path / "m" / picture).size[0] > 200
    assert Image.open(tmp_path / "m" / "summary.png").size == (1210, 462)
    (tmp_path / "next").mkdir()
    copy_pictures(tmp_path / "m", tmp_path / "next")
    assert len(list((tmp_path / "next" / "validation").iterdir())) == 2
    found = summary["confidence"]["all"]
    assert f"{found['looked_at']} (of {found['segmented']}) with the lowest confidence" in card
    again = evaluate(tmp_path / "m", phantoms, tmp_path / "scores", cases=["case_2"], device="cpu")
    assert again["all"]["dice"] == summary["all"]["dice"]
    with pytest.raises(UserError, match="trained on"):
        evaluate(tmp_path / "m", phantoms, tmp_path / "scores", cases=["case_0"], device="cpu")


def test_the_volumes_are_gone_when_the_training_begins(phantoms, quick_settings, tmp_path, monkeypatch):
    """The samples are all that it needs; the volumes of a large data set take many times their memory."""
    volumes, left = [], []

    def load(*arguments):
        loaded = load_case(*arguments)
        volumes.append(weakref.ref(loaded.volume))
        return loaded

    def watch(*arguments, **more):
        left.extend(volume() for volume in volumes)
        return finetune(*arguments, **more)

    monkeypatch.setattr("pgpsam.training.run.load_case", load)
    monkeypatch.setattr("pgpsam.training.run.finetune", watch)
    settings = replace(quick_settings, iterations=1)
    train_on_dataset(read_dataset(phantoms), tmp_path / "m", settings, SliceChoice(), device="cpu", scored=False)
    assert left == [None, None]


def test_slices_that_were_left_out_between_labelled_ones_are_counted():
    labels = np.zeros((8, 4, 4), np.uint8)
    assert unlabelled_between(labels) == 0
    labels[[2, 3, 6], 1, 1] = 5
    assert unlabelled_between(labels) == 2


def test_scores_say_that_slices_were_left_out(phantoms, quick_model, tmp_path, caplog):
    """Few-shot labels of a held-out case: what is not drawn would count as found in error, without a word."""
    import nibabel

    data = shutil.copytree(phantoms, tmp_path / "data")
    stored = nibabel.load(data / "labels" / "case_2.nii.gz")
    ids = np.asarray(stored.dataobj).copy()
    ids[:, :, 2:4] = 0
    nibabel.save(nibabel.Nifti1Image(ids, stored.affine), data / "labels" / "case_2.nii.gz")
    model = shutil.copytree(quick_model, tmp_path / "m")
    dataset = read_dataset(data)
    summary = finish(model, dataset, dataset.select(["case_2"]), "all annotated slices", "", "cpu")
    assert "case_2: 2 slices between its labelled ones show no organ and are scored as background" in caplog.text
    line = "Slices between labelled ones that show no organ are scored as background, in case_2 (2);"
    assert summary["note"].startswith(line)
    told = json.loads((model / "validation" / "scores.json").read_text(encoding="utf-8"))
    assert told["about"]["note"] == summary["note"] == load_spec(model).scores["summary"]["note"]
    for page in ("CARD.md", "validation/scores.html"):
        assert line in (model / page).read_text(encoding="utf-8")


def test_a_place_for_scores_that_cannot_be_written_is_refused_before_any_work(phantoms, quick_model, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    options = ["--model", str(quick_model), "--data", str(phantoms), "--out", str(tmp_path / "file")]
    assert evaluate_main(options) == 2
    assert "is no folder" in capsys.readouterr().err


def test_starting_from_a_trained_model(phantoms, quick_model, quick_settings, tmp_path):
    dataset = read_dataset(phantoms)
    samples = choose_samples(dataset, dataset.cases[:1], SliceChoice(), quick_settings)
    settings = replace(quick_settings, iterations=1, lr=0.0, published_lr=0.0, start_from=str(quick_model))
    finetune(samples, dataset.labels, settings, tmp_path / "m", name="m", device="cpu")
    first, second = (load_file(f / "adapter.safetensors") for f in (quick_model, tmp_path / "m"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    moved = replace(settings, iterations=2, lr=1e-2, average=0.0)
    for name, share in (("all", 0.0), ("half", 0.5)):
        finetune(samples, dataset.labels, replace(moved, start_share=share), tmp_path / name, name=name, device="cpu")
    assert load_spec(tmp_path / "half").training["started_from"]["share"] == 0.5
    assert "trained on 2 patients; its weights are 50% of these." in model_card(load_spec(tmp_path / "half"))
    trained, mean = (load_file(tmp_path / name / "adapter.safetensors") for name in ("all", "half"))
    assert not all(torch.equal(first[name], trained[name]) for name in first)
    for name in first:
        torch.testing.assert_close(mean[name], first[name].lerp(trained[name], 0.5), atol=2e-3, rtol=2e-3)
    other = replace(settings, settings={"alpha": 3, "nearest": 2})
    with pytest.raises(UserError, match="method settings"):
        finetune(samples, dataset.labels, other, tmp_path / "n", name="n", device="cpu")


def test_a_model_teaches_slices_that_nobody_annotated(phantoms, quick_model, quick_settings, tmp_path):
    dataset = read_dataset(phantoms)
    (case,) = (load_case(c, dataset.labels) for c in dataset.select(["case_0"]))
    teacher = load_teacher([str(quick_model)], dataset.labels, "cpu")
    guessed = guessed_samples(teacher, case, [2], quick_settings.preparation)
    assert [s.index for s in guessed] == [0, 4]  # every 10 mm of 5 mm slices, without the annotated one
    assert all(s.guessed for s in guessed)
    # What the teacher says of the thinned volume, where it is sure, on the same pixels.
    thick = Volume.from_kji(case.volume.array[::2], case.volume.affine @ np.diag([1, 1, 2, 1]))
    result = teacher.segmenters[0].segment(thick, looks=1)  # a teacher looks once
    frame = frame_volume(case.volume, quick_settings.preparation)
    needed = np.where(result.labels > 0, CONFIDENT_ORGAN, CONFIDENT_NOTHING)
    sure = scale_labels(result.confidence >= needed, frame, [0, 2]).bool()
    said = scale_labels(np.searchsorted([0, *dataset.labels.ids], result.labels), frame, [0, 2])
    for sample, inside, answer in zip(guessed, sure, said, strict=True):
        assert torch.equal(sample.labels != IGNORED, inside)
        assert torch.equal(sample.labels[inside], answer[inside])

    settings = replace(quick_settings, iterations=2, start_from=str(quick_model))
    choice = SliceChoice(shots=2)
    arguments = {"hold_out": ["case_2"], "teachers": [str(quick_model)], "device": "cpu"}
    train_on_dataset(read_dataset(phantoms), tmp_path / "m", settings, choice, **arguments)
    spec = json.loads((tmp_path / "m" / "model.json").read_text())
    assert spec["training"]["taught_by"] == {"name": "quick", "cases": ["case_0", "case_1"], "commands": []}
    assert (spec["training"]["slices"], spec["training"]["guessed_slices"]) == (2, 4)
    assert "Taught by `quick` on 4 slices" in (tmp_path / "m" / "CARD.md").read_text()
    with pytest.raises(UserError, match="no slice is left for"):
        train_on_dataset(
            read_dataset(phantoms), tmp_path / "n", settings, SliceChoice(fully_annotated=True), **arguments
        )
    # A case that the new model would be scored on may not reach it through its teacher nor through its start.
    for start, teachers in (("", [str(quick_model)]), (str(quick_model), [])):
        seen = {"hold_out": ["case_0"], "teachers": teachers, "device": "cpu"}
        with pytest.raises(UserError, match="was trained on case_0: a score there would say nothing"):
            train_on_dataset(
                read_dataset(phantoms), tmp_path / "n", replace(settings, start_from=start), choice, **seen
            )
    assert not (tmp_path / "n").exists()


def test_several_teachers_answer_with_their_mean(phantoms, quick_model):
    dataset = read_dataset(phantoms)
    (case,) = (load_case(c, dataset.labels) for c in dataset.select(["case_0"]))
    alone, twice = (load_teacher([str(quick_model)] * n, dataset.labels, "cpu") for n in (1, 2))
    labels, confidence = alone.answer(case.volume)
    assert labels.any()
    same, sure = twice.answer(case.volume)
    # Shares are averaged in half precision, so that voxels between two organs may go either way.
    assert np.abs(sure - confidence).max() < 0.01
    assert (same != labels).mean() < 1e-3

    # One that is sure of the background everywhere takes half of the share from every organ.
    blind = load_teacher([str(quick_model)], dataset.labels, "cpu").segmenters[0]
    answers = blind.shares(case.volume)
    blind.shares = lambda *_, **__: [(z, torch.eye(3)[0, :, None, None].expand_as(one)) for z, one in answers]
    mean, half = Teacher([alone.segmenters[0], blind]).answer(case.volume)
    assert not mean[labels > 0].any()
    assert half[labels > 0] == pytest.approx(1 - confidence[labels > 0] / 2, abs=0.3)


def test_a_teacher_of_other_organs_is_refused(phantoms, quick_model):
    with pytest.raises(UserError, match="cannot label slices: its organs are spleen, liver"):
        load_teacher([str(quick_model)], LabelSet.from_names({"kidney": 1}), "cpu")


def test_bad_data_sets_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no such data folder"):
        read_dataset(tmp_path / "none")
    with pytest.raises(UserError, match="neither images/ and labels/"):
        read_dataset(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(UserError, match="no image"):
        read_dataset(tmp_path)


def test_the_probe_trains_on_features_that_are_encoded_once(phantoms, tmp_path):
    dataset = read_dataset(phantoms)
    settings = replace(recipe("probe"), iterations=6, batch=2, canvas=(56, 112))
    samples = choose_samples(dataset, dataset.select(["case_0", "case_1"]), SliceChoice(), settings)
    finetune(samples, dataset.labels, settings, tmp_path / "probe", name="probe", device="cpu")
    tensors = load_file(tmp_path / "probe" / "adapter.safetensors")
    assert all(name.startswith("head.") for name in tensors)
    assert evaluate(tmp_path / "probe", phantoms, tmp_path / "scores", cases=["case_2"], device="cpu")["cases"]


@pytest.mark.parametrize("method", sorted({*METHODS} - {"pgp", "probe"}))
def test_every_other_method_goes_from_a_data_set_to_a_model_that_segments(phantoms, tmp_path, method):
    settings = replace(recipe(method), iterations=2, batch=2, canvas=(56, 112))
    summary = train_on_dataset(read_dataset(phantoms), tmp_path / "m", settings, SliceChoice(), device="cpu")
    assert [case["case"] for case in summary["cases"]] == ["case_2"]
    spec = json.loads((tmp_path / "m" / "model.json").read_text())
    assert (spec["method"], spec["backbone"]) == (method, settings.backbone)
    assert f"Method `{method}` " in (tmp_path / "m" / "CARD.md").read_text()
    again = evaluate(tmp_path / "m", phantoms, tmp_path / "scores", cases=["case_2"], device="cpu")
    assert again["all"]["dice"] == summary["all"]["dice"]


def test_a_frozen_encoder_keeps_only_necks_where_the_method_needs_no_more(phantoms, tmp_path):
    """PGP-SAM without LoRA and without augmentation still gets its taps."""
    settings = replace(
        recipe("pgp"),
        iterations=1,
        batch=2,
        canvas=(56, 112),
        augmentation=None,
        settings={"lora_rank": 0, "alpha": 2, "nearest": 2},
    )
    dataset = read_dataset(phantoms)
    samples = choose_samples(dataset, dataset.cases[:1], SliceChoice(), settings)
    finetune(samples, dataset.labels, settings, tmp_path / "m", name="m", device="cpu")


@pytest.mark.parametrize("method", METHODS)
def test_what_decays_and_at_which_rate_it_learns(method):
    """Matrices decay, but for biases of any shape and prototypes; SAM's transformer has a rate of its own."""
    settings = replace(recipe(method), lr=1.0, published_lr=0.5, weight_decay=0.1)
    network = build_network(method, settings.backbone, 3, {}, None)
    names = {id(value): name for name, value in network.named_parameters() if value.requires_grad}
    seen = []
    for group in make_optimizer(network, settings).param_groups:
        for value in group["params"]:
            name = names[id(value)]
            seen.append(name)
            still = value.ndim < 2 or "bias" in name or name.startswith("prototypes.")
            assert group["weight_decay"] == (0.0 if still else 0.1), name
            assert group["lr"] == (0.5 if name.startswith("decoder.transformer.") else 1.0), name
    assert sorted(seen) == sorted(names.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nearest": 9}, "nearest of method pgp is 9"),
        ({"strip": 4}, "strip"),
        ({"lora_rank": -1}, "lora_rank"),
        ({"temperature": 0.0}, "temperature"),
        ({"fuse": False, "ppg": False}, "fuse"),
        ({"beta": 1}, "no setting 'beta'"),
        ({"alpha": "many"}, "not a int"),
    ],
)
def test_method_settings_that_cannot_work_are_refused(change, message):
    with pytest.raises(UserError, match=message) as caught:
        make_settings("pgp", change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr=fast", "--set lr"),
        ("canvas=[168]", "--set canvas"),
        ("nearest=99", "nearest"),
        ("lora_stages=nothing", "matches no attention"),
        ("lora_stages=(", "regular expression"),
        ("lr", "NAME=VALUE"),
    ],
)
def test_settings_on_the_command_line_that_cannot_work_are_one_line(phantoms, tmp_path, capsys, setting, message):
    arguments = ["--data", str(phantoms), "--out", str(tmp_path / "m"), "--progress", "none", "--set", setting]
    assert finetune_main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("error: ")
    assert "\n" not in error
    assert not (tmp_path / "m").exists()


def test_a_setting_of_augmentation_that_is_off_is_refused(phantoms, tmp_path, capsys):
    arguments = ["--data", str(phantoms), "--out", str(tmp_path / "m"), "--method", "probe", "--set", "unenhanced=0"]
    assert finetune_main(arguments) == 2
    assert capsys.readouterr().err == "error: --set unenhanced=0: this run has no augmentation. Leave it out.\n"


def test_contrast_agent_is_taken_out_of_the_bright_organs_only():
    image, labels = torch.full((1, 30, 30), 0.2), torch.zeros(1, 30, 30)
    labels[0, :10], labels[0, 20:] = 1, 2
    image[0, :10], image[0, 20:] = 0.8, 0.3  # brighter than soft tissue (0.425), and darker
    transform = ContrastAgent(prob=1.0)
    transform.set_random_state(1)
    shares = []
    for _ in range(50):
        made = transform({"image": image, "labels": labels})["image"]
        assert torch.equal(made[0, 12:], image[0, 12:])
        inner = made[0, 2:8]
        assert float(inner.std()) < 1e-5
        shares.append((0.8 - float(inner.mean())) / (0.8 - 0.425))
    assert 0 <= min(shares) < 0.1
    assert 0.9 < max(shares) <= 1.0


def test_in_another_phase_every_organ_has_its_own_share_of_the_contrast_agent():
    image, labels = torch.full((1, 30, 30), 0.2), torch.zeros(1, 30, 30)
    labels[0, :10], labels[0, 20:] = 1, 2
    image[0, :10], image[0, 20:] = 0.6, 0.5
    transform = ContrastAgent(prob=1.0, factors=(0.5, 2.0), each=True)
    transform.set_random_state(1)
    factors = []
    for _ in range(200):
        made = transform({"image": image, "labels": labels})["image"][0]
        assert torch.equal(made[12:18], image[0, 12:18])
        factors.append([(float(made[at].mean()) - 0.425) / (mean - 0.425) for at, mean in ((5, 0.6), (25, 0.5))])
    both = np.array(factors)
    assert both.min() >= 0.49
    assert both.max() <= 2.01
    assert (both.min(0) < 0.6).all()
    assert (both.max(0) > 1.9).all()
    assert abs(np.corrcoef(both.T)[0, 1]) < 0.2, "the organs share a factor"


def test_a_cropped_field_of_view_lies_in_the_middle_and_shows_nothing_around():
    image, labels = torch.zeros(1, 60, 80), torch.zeros(1, 60, 80)
    image[0, 10:50, 20:70] = torch.linspace(0.1, 1, 40)[:, None] * torch.linspace(0.5, 1, 50)
    labels[0, 15:45, 30:60] = 3
    drawn = image[labels > 0].sort().values
    transform = CropFieldOfView(prob=1.0)
    transform.set_random_state(0)
    sides = []
    for _ in range(50):
        made = transform({"image": image, "labels": labels})
        rows, columns = (made["image"][0].any(1 - axis).nonzero().flatten() for axis in (0, 1))
        for seen, size, whole in ((rows, 60, 40), (columns, 80, 50)):
            assert abs(int(seen[0]) + int(seen[-1]) + 1 - size) <= 1, "the box is not in the middle"
            sides.append(len(seen) / whole)
        assert set(made["labels"].unique().tolist()) <= {0, 3}
        assert torch.isin(made["image"][made["labels"] > 0], drawn).all(), "image and labels moved apart"
    assert 0.5 <= min(sides) < 0.55
    assert 0.9 < max(sides) <= 1
    assert torch.equal(transform({"image": image * 0, "labels": labels})["labels"], labels)


def test_a_coarse_image_keeps_its_labels():
    image, labels = torch.rand(1, 56, 56), torch.zeros(56, 56, dtype=torch.long)
    labels[20:40, 20:40] = 1
    still = Augmentation(0, 0, 0, 0, (0, 0), 0, 0, 0, (1, 1), 0)
    made = {}
    for coarse in (0.0, 1.0):
        augment = Augmenter((56, 56), replace(still, coarse=coarse))
        augment.restart(1)
        made[coarse] = augment(image, labels)
    assert torch.equal(made[0.0][1], made[1.0][1])
    assert made[1.0][0].std() < 0.7 * made[0.0][0].std()


def test_distractors_change_the_background_only_and_never_the_labels():
    image, labels = torch.full((1, 80, 80), 0.06), torch.zeros(1, 80, 80)
    labels[0, 10:40, 10:40] = 2
    image[0, 10:40, 10:40] = 0.45
    image[0, :, 60:] = 0  # air
    image[0, 60:, :60] = 0.95  # bone
    transform = Distract(prob=1.0)
    transform.set_random_state(3)
    changed = torch.zeros(80, 80)
    for _ in range(30):
        made = transform({"image": image, "labels": labels})
        assert torch.equal(made["labels"], labels)
        difference = (made["image"] - image)[0].abs() > 0.15
        assert difference.any(), "no blob"
        assert float(difference.float().mean()) < 0.5
        changed += difference
    assert not changed[11:39, 11:39].any(), "an organ was painted over"
    assert not changed[:, 61:].any(), "a blob in the air"
    assert not changed[61:, :59].any(), "a blob in the bone"


def test_what_the_command_line_trains_where_nothing_is_said(phantoms, quick_model):
    """The default method's recipe; from a model on, its method and settings; as long as the device is worth."""

    def settings(*words):
        parser = argparse.ArgumentParser()
        for name in ("--method", "--backbone", "--start-from", "--device"):
            parser.add_argument(name)
        parser.add_argument("--iterations", type=int)
        parser.add_argument("--set", nargs="*", default=[])
        parser.set_defaults(staged=False, seed=0, device="cpu")
        return settings_of(parser.parse_args(words), read_dataset(phantoms))

    assert settings() == recipe("pgsam")
    onwards = settings("--start-from", str(quick_model))
    assert (onwards.method, onwards.settings["alpha"]) == ("pgp", 2)
    assert (onwards.lr, onwards.start_share) == (recipe("pgp").lr / 4, 0.5), "few slices make a model forget"
    assert settings("--start-from", str(quick_model), "--set", "lr=0.1", "start_share=0").lr == 0.1
    assert settings("--start-from", str(quick_model), "--method", "pgsam").settings == {}
    assert settings("--start-from", str(quick_model), "--set", "window=[0,200]").preparation.window == (0.0, 200.0)
    assert settings("--iterations", "7", "--set", "iterations=9").iterations == 7
    assert settings("--set", "iterations=9").iterations == 9
    assert settings("--iterations", "999").dice_weight == (0.5, 0.8)
    assert settings("--iterations", "1000").dice_weight == (0.5, 0.5)  # long enough for the other recipe
    for method, device, count in (("pgsam", "cuda", 1700), ("pgsam", "cpu", 450), ("unet", "cuda", 2000)):
        assert usual_iterations(method, torch.device(device)) == count


def test_a_model_goes_on_with_the_window_and_the_channels_that_it_knows(phantoms, quick_settings, tmp_path):
    """At the default's pixel size: a model of coarse pixels goes on at fine ones."""
    dataset = read_dataset(phantoms)
    first = Preparation(window=(-100.0, 200.0), spacing_mm=2.0, offsets_mm=(-5.0, 0.0, 5.0))
    settings = replace(quick_settings, iterations=1, preparation=first)
    samples = choose_samples(dataset, dataset.cases[:1], SliceChoice(), settings)
    start = finetune(samples, dataset.labels, settings, tmp_path / "start", name="start", device="cpu")
    words = ["--data", str(phantoms), "--out", str(tmp_path / "m"), "--start-from", str(start), "--iterations", "1"]
    words += ["--hold-out", "--device", "cpu", "--progress", "none", "--set", "batch=2", "canvas=[56,112]"]
    assert finetune_main(words) == 0
    made = Preparation.from_json(load_spec(tmp_path / "m").preparation)
    assert made == replace(first, spacing_mm=1.5)


def test_the_state_that_an_earlier_version_left_is_known_again(phantoms, quick_settings):
    """It says nothing of the share of the start's weights, of which there was none."""
    dataset = read_dataset(phantoms)
    samples = choose_samples(dataset, dataset.cases[:1], SliceChoice(), quick_settings)
    assert "start_share" not in run_key(quick_settings, samples)
    assert "keep_decoder" not in run_key(replace(quick_settings, keep_encoder=True), samples)
    assert "start_share=0.5" in run_key(replace(quick_settings, start_share=0.5), samples)
