"""Classes are data: what `--classes` says, how names are read, and that weights carry their own."""

import gzip
import io
import json
import re
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from PIL import Image

import interface
import predict
import test as score
from audit import audit
from classes import SEVEN, choose, class_of, meanings, text_for
from config import CLASSES, Config
from dataset import load
from errors import UserError
from helpers import REPO, csv_of_folders, write_folders

FOUND = {name: (10, 14) for name in CLASSES}
QUICK = ("--model", "EmotionResNet-nano", "--width", "0.25", "--epochs", "1", "--device", "cpu", "--threads", "1")


def load_from(path, tmp_path, **settings):
    return load(Config(data=str(path), cache=str(tmp_path / "cache"), **settings))


def rename(folder, names):
    """Rename or, with "", remove class folders in every split of `folder`."""
    for split in folder.iterdir():
        for old, new in names.items():
            if new:
                (split / old).rename(split / new)
            else:
                shutil.rmtree(split / old)
    return folder


# --- Choosing ---


def test_by_default_the_seven_that_are_there_and_the_missing_ones_are_named():
    assert choose("", FOUND)[:2] == (CLASSES, list(range(7))) and not choose("", FOUND).notes
    some = {name: FOUND[name] for name in ("surprise", "happy", "angry")}
    names, labels, (note,) = choose("", some)
    assert names == ("angry", "happy", "surprise") and labels == [2, 1, 0]
    assert "no disgust and no fear" in note and "--classes" in note


def test_an_unknown_name_is_refused_with_both_ways_out_and_both_work():
    found = {**FOUND, "contempt": (3, 5)}
    with pytest.raises(
        UserError, match=r"'contempt' \(5 images\) is no class. --skip-unknown .* --classes (\S+) "
    ) as told:
        choose("", found)
    names, labels, notes = choose("", found, skip=True)
    assert names == CLASSES and labels[-1] == -1 and notes == ["left out: 'contempt' (5 images)"]
    told = str(told.value).partition("--classes ")[2].split()[0]
    assert choose(told, found)[:2] == ((*CLASSES, "contempt"), list(range(8)))


def test_a_list_has_its_own_order_leaves_the_others_out_and_asks_for_all_of_its_own():
    names, labels, notes = choose("happy,angry,smile=happy", {**FOUND, "smile": (1, 1)})
    assert names == ("happy", "angry") and labels == [1, -1, -1, 0, -1, -1, -1, 0]
    assert "'disgust' (14 images)" in notes[0] and "'smile' as happy" in notes[1]
    with pytest.raises(UserError, match="train has no readable image of: bored"):
        choose("happy,bored", FOUND)
    with pytest.raises(UserError, match="two classes are needed"):
        choose("", {"happy": (4, 4)})


def test_auto_takes_the_names_as_they_are_in_alphabetical_order():
    names, labels, _ = choose("auto", {"glasses": (2, 3), "Beard": (2, 2), "beard": (0, 1), "only in val": (0, 1)})
    assert names == ("Beard", "glasses") and labels == [1, 0, 0, -1]
    with pytest.raises(UserError, match=r"'a,b'.*rename it"):
        choose("auto", {"a,b": (1, 1), "c": (1, 1)})


def test_bare_numbers_are_not_guessed_but_in_a_table_they_are_those_of_fer2013():
    numbers = {str(number): (10, 14) for number in range(7)}
    with pytest.raises(UserError, match=r"--classes 0=angry,1=disgust,.*RAF-DB \(1=surprise"):
        choose("", numbers)
    assert choose("", numbers, table=True).labels == list(range(7))
    rafdb = choose(
        "1=surprise,2=fear,3=disgust,4=happy,5=sad,6=angry,7=neutral",
        {"1": (1, 1), "7": (1, 1)} | {str(number): (1, 1) for number in range(2, 7)},
    )
    assert rafdb.names[0] == "surprise" and class_of("1", meanings("1=surprise,2=fear", table=True)) == "surprise"
    assert class_of("3", meanings("1=surprise,2=fear", table=True)) == ""  # no shift of some labels
    with pytest.raises(UserError, match=r"'7' .* is no class"):
        choose("", {**numbers, "7": (3, 3)}, table=True)
    assert choose(",".join((*CLASSES, "7=contempt")), {**numbers, "7": (3, 3)}, table=True).labels == list(range(8))
    assert choose("", {**numbers, "99": (1, 1)}, table=True).labels[-1] == -1  # a bad row


@pytest.mark.parametrize("text", ["happy", "happy,", ",", "=happy,sad", "a=,b", "a\nb,c", "happy,HAPPY"])
def test_a_list_that_is_none_is_refused_as_a_flag(text):
    with pytest.raises(ValueError, match="classes: "):
        Config(classes=text)


# --- Datasets ---


@pytest.mark.parametrize("form", ["folder", "table"])
def test_five_classes_are_loaded_from_every_form_with_one_fingerprint(tmp_path, form):
    folder = rename(write_folders(tmp_path / "a"), {"disgust": "", "fear": ""})
    data = load_from(folder if form == "folder" else csv_of_folders(folder, tmp_path / "x.csv"), tmp_path)
    assert data.classes == ("angry", "happy", "sad", "surprise", "neutral") and data.split("train").counts() == [10] * 5
    listed = load_from(folder, tmp_path, classes="angry,happy,sad,surprise,neutral")
    assert data.fingerprint == listed.fingerprint != load_from(folder, tmp_path, classes="auto").fingerprint
    pixels = {
        int(label): set(np.asarray(listed.split("val").images)[listed.split("val").labels == label].mean((1, 2)) // 28)
        for label in range(5)
    }
    assert pixels == {0: {1}, 1: {4}, 2: {5}, 3: {6}, 4: {7}}


def test_a_choice_decodes_nothing_anew(tmp_path):
    folder = rename(write_folders(tmp_path / "a"), {"sad": "smile"})
    load_from(folder, tmp_path, classes="auto")
    (before,) = [each for each in (tmp_path / "cache").iterdir() if each.is_dir()]
    stamp = (before / "images.bin").stat().st_mtime_ns
    assert load_from(folder, tmp_path, classes="happy,angry,smile=happy").split("train").counts() == [20, 10]
    assert (before / "images.bin").stat().st_mtime_ns == stamp


def test_a_class_that_only_validation_has_is_left_out_and_named(tmp_path):
    folder = write_folders(tmp_path / "a")
    shutil.rmtree(folder / "train" / "sad")
    data = load_from(folder, tmp_path)
    assert "sad" not in data.classes and data.split("val").counts() == [4] * 6
    assert any("train has no sad" in note for note in data.notes)


def test_the_audit_tells_of_copies_contradictions_and_empty_images(tmp_path):
    folder = write_folders(tmp_path / "a")
    one = sorted((folder / "train/angry").iterdir())
    shutil.copy(one[0], folder / "train/angry/again.png")
    shutil.copy(one[1], folder / "train/sad/other.png")
    Image.new("L", (48, 48), 9).save(folder / "train/fear/flat.png")
    Image.open(one[2]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "test/angry/PublicTest_99.png")
    lines = "\n".join(audit(load_from(folder, tmp_path).splits))
    for words in (
        "2 train images with the pixels",
        "2 train images in 1 group of one picture under several classes",
        "1 train image of one grey value",
        "1 of the val images are in train too, mirrored",
    ):
        assert words in lines


TREES = {  # where else a split may stand, and levels between
    "splits in classes": lambda split, name: f"{name}/{split}",
    "splits in front": lambda split, name: f"{split}_{name}",
    "Splits In Front": lambda split, name: f"{split.upper()} - {name.title()}",
    "a level twice": lambda split, name: f"{split}/{split}/{name}",
    "by person": lambda split, name: f"{split}/VP{len(name)}/{name}",
    "persons last": lambda split, name: f"{split}/{name}/VP{len(split)}",
}


@pytest.mark.parametrize("tree", TREES)
def test_no_split_and_no_class_is_lost_in_another_tree(tmp_path, tree, capsys):
    folder, other = write_folders(tmp_path / "a", val=0), tmp_path / "b"
    for file in sorted(folder.glob("*/*/*")):
        split, name = file.relative_to(folder).parts[:2]
        place = other / TREES[tree](split, name)
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / file.name.replace("PrivateTest", "x"))
    data, plain = (load_from(each, tmp_path) for each in (other, folder))
    assert data.fingerprint == plain.fingerprint and data.split("test").counts() == plain.split("test").counts()
    predict.main([str(other), "--quiet"])
    assert "of 84)" in capsys.readouterr().out  # with the same labels


def test_accents_are_one_however_they_are_coded(tmp_path):
    folder = rename(write_folders(tmp_path / "a"), {"angry": unicodedata.normalize("NFD", "Wütend")})
    data = load_from(folder, tmp_path, classes=unicodedata.normalize("NFC", "wütend=angry,happy"))
    assert data.classes == ("angry", "happy") and data.split("train").counts() == [10, 10]


def test_suggestions_can_be_pasted_and_offer_what_can_work(tmp_path):
    folder = write_folders(tmp_path / "a")
    for split in folder.iterdir():
        (split / "angry").rename(split / "bored")
    with pytest.raises(UserError) as told:
        load_from(folder, tmp_path)
    listed = str(told.value).partition("leaves them out, --classes ")[2].split()[0]
    assert load_from(folder, tmp_path, classes=listed).classes == (*CLASSES[1:], "bored")
    for split in folder.iterdir():
        for name in CLASSES[1:]:
            shutil.rmtree(split / name)
    with pytest.raises(UserError, match=r"'bored'.* is no class\. Put the images of each class into a folder"):
        load_from(folder, tmp_path)


# --- Tables ---


def rows_of(label="0", pixels=None, usage="Training"):
    return label, pixels or " ".join(["7"] * 2304), usage


def small_table(
    path, *, seed=False, names=CLASSES, header="emotion,pixels,Usage", change=lambda cells: ",".join(cells)
):
    """A table of two train, one val and one test image of each class."""
    rng, lines = np.random.default_rng(list(path.name.encode()) if seed else 0), [header] if header else []
    for usage in ("Training", "Training", "PublicTest", "PrivateTest"):
        for name in names:
            lines.append(change([name, " ".join(map(str, rng.integers(0, 256, 2304))), usage]))
    path.write_text("\n".join(lines) + "\n")
    return path


NUMBERS = tuple("0123456")
FORMS = {
    "as it is": {},
    "semicolons": {"header": "emotion;pixels;Usage", "change": ";".join},
    "tabs": {"header": "emotion\tpixels\tUsage", "change": "\t".join},
    "no header": {"header": ""},
    "a list": {"change": lambda cells: f'{cells[0]},"[{cells[1].replace(" ", ", ")}]",{cells[2]}'},
    "commas": {"change": lambda cells: f'{cells[0]},"{cells[1].replace(" ", ",")}",{cells[2]}'},
    "floats": {"change": lambda cells: f"{cells[0]}.0,{cells[1].replace(' ', '.0 ')}.0,{cells[2]}"},
    "words": {"names": CLASSES},
    "Words": {"names": ("Anger", "Disgust", "FEAR", "happiness", "Sad", "surprised", "Neutral")},
    "other words for splits": {
        "change": lambda cells: ",".join(
            [*cells[:2], {"Training": "train", "PublicTest": "Validation", "PrivateTest": "testing"}[cells[2]]]
        )
    },
    "other names of columns": {"header": " Emotion,Pixels , Part"},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_is_one_dataset(tmp_path, form):
    whole = load_from(small_table(tmp_path / "a.csv", names=NUMBERS), tmp_path)
    data = load_from(small_table(tmp_path / "b.csv", **{"names": NUMBERS, **FORMS[form]}), tmp_path)
    assert data.fingerprint == whole.fingerprint and [len(split) for split in data.splits.values()] == [14, 7, 7]


@pytest.mark.parametrize("name", ["x.csv.gz", "x.gz", "fer2013"])
def test_a_packed_table_and_one_without_a_suffix(tmp_path, name):
    path = small_table(tmp_path / "a.csv", names=NUMBERS)
    data = path.read_bytes() if name == "fer2013" else gzip.compress(path.read_bytes())
    (tmp_path / name).write_bytes(data)
    assert load_from(tmp_path / name, tmp_path).fingerprint == load_from(path, tmp_path).fingerprint
    if name != "fer2013":
        (tmp_path / name).write_bytes(data[:-20])
        with pytest.raises(UserError, match="truncated or damaged"):
            load_from(tmp_path / name, tmp_path)


def test_without_usage_all_rows_are_train_and_a_table_may_be_one_split(tmp_path):
    two = {"header": "emotion,pixels", "change": lambda cells: ",".join(cells[:2]), "names": NUMBERS}
    data = load_from(small_table(tmp_path / "all.csv", **two), tmp_path)
    assert data.sampled_val and sum(map(len, data.splits.values())) == 28
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("train", "val", "test"):
        small_table(folder / f"{name}.csv", seed=True, **two)
    parts = load(Config(data=str(folder), cache=str(tmp_path / "cache"), classes=",".join(CLASSES)), fixed=True)
    assert {name: len(split) for name, split in parts.splits.items()} == {"train": 28, "val": 28, "test": 28}


def test_a_usage_that_nobody_knows_refuses_the_table_and_a_single_one_is_a_bad_row(tmp_path):
    words = {"Training": "Training", "PublicTest": "Holdout", "PrivateTest": "PrivateTest"}
    change = {"names": NUMBERS, "change": lambda cells: ",".join([*cells[:2], words[cells[2]]])}
    with pytest.raises(UserError, match="unknown Usage 'Holdout' in 7 rows"):
        load_from(small_table(tmp_path / "a.csv", **change), tmp_path)
    path = small_table(tmp_path / "b.csv", names=NUMBERS)
    path.write_text(path.read_text() + ",".join(rows_of(usage="Holdout")) + "\n")
    assert any("unknown Usage 'Holdout'" in note for note in load_from(path, tmp_path).notes)


def test_numbers_that_may_count_otherwise_are_not_guessed(tmp_path):
    from_one = {"names": tuple("123456"), "header": "emotion,pixels,Usage"}
    with pytest.raises(UserError, match="Numbers count differently"):
        load_from(small_table(tmp_path / "a.csv", **from_one), tmp_path)
    typed = load_from(tmp_path / "a.csv", tmp_path, classes=",".join(f"{n + 1}={CLASSES[n]}" for n in range(6)))
    assert typed.classes == CLASSES[:6]
    with pytest.raises(UserError, match=r"'label 0'.*'label 6'"):
        load_from(small_table(tmp_path / "b.csv", names=NUMBERS, header="label,pixels,Usage"), tmp_path)
    (note,) = load_from(small_table(tmp_path / "c.csv", names=NUMBERS), tmp_path).notes
    assert "numbers are those of FER2013" in note


def test_numbers_that_are_typed_count_in_any_column_and_are_not_called_those_of_fer2013(tmp_path):
    swapped = ",".join(f"{(n + 1) % 7}={name}" for n, name in enumerate(CLASSES))
    for header in ("label,pixels,Usage", "emotion,pixels,Usage"):
        table = small_table(tmp_path / f"{header[:5]}.csv", names=NUMBERS, header=header)
        data = load_from(table, tmp_path, classes=swapped)
        assert data.classes == CLASSES and not any("FER2013" in note for note in data.notes)


def test_a_person_called_joy_does_not_make_angry_faces_happy(tmp_path):
    root = write_folders(tmp_path / "faces")
    joy = root / "train" / "angry" / "Joy"
    joy.mkdir()
    for file in (root / "train" / "angry").glob("*.png"):
        file.rename(joy / file.name)
    data = load_from(root, tmp_path)
    assert np.bincount(data.split("train").labels).tolist() == [10] * 7 and not any(
        "read" in note for note in data.notes
    )


def test_the_folder_that_tells_the_class_is_named_and_pooled_folders_are_too():
    found = {f"{top}/{name}": (5, 5) for top in ("entrenamiento", "prueba") for name in ("feliz", "triste")}
    notes = choose("feliz=happy,triste=sad,happy,sad", found).notes
    assert notes[0] == "read: 'feliz' as happy, 'triste' as sad"
    assert "'entrenamiento', 'prueba'" in notes[1] and "call them train, val and test" in notes[1]


@pytest.mark.parametrize("name", ["{split}_{label}/{file}", "{label}_{split}/{file}", "{label}/{split}_{file}"])
def test_a_split_beside_the_name_of_a_class_or_file(tmp_path, name):
    for split, count, grey in (("train", 6, 0), ("valid", 3, 60), ("test", 2, 100)):
        for number in range(count * len(CLASSES)):
            file = tmp_path / "faces" / name.format(split=split, label=CLASSES[number % 7], file=f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((48, 48), grey + number, np.uint8)).save(file)
    data = load_from(tmp_path / "faces", tmp_path)
    assert {name: len(data.split(name)) for name in ("train", "val", "test")} == {"train": 42, "val": 21, "test": 14}


def test_a_suggested_line_can_be_pasted_and_none_is_that_cannot_help():
    with pytest.raises(UserError, match=r"--classes 'happy,sad,sad \(1\)'") as told:
        choose("", {"happy": (5, 5), "sad": (5, 5), "sad (1)": (5, 5)})
    assert "--skip-unknown" in str(told.value)
    with pytest.raises(UserError) as told:
        choose("", {"neutral": (5, 5), "Angst": (5, 5)})
    assert "--skip-unknown" not in str(told.value)


def test_numbers_of_a_table_may_be_taken_as_they_are(tmp_path):
    assert load_from(small_table(tmp_path / "a.csv", names=NUMBERS), tmp_path, classes="auto").classes == NUMBERS


def test_parquet_files_of_hugging_face(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names, folder = ["happy", "sad", "angry"], tmp_path / "data"
    folder.mkdir()
    for part, split in (("train-00000-of-00002", 0), ("train-00001-of-00002", 1), ("validation-00000-of-00001", 2)):
        rows = {"image": [], "label": []}
        for label in range(3):
            buffer = io.BytesIO()
            Image.fromarray(np.full((48, 48), 60 * split + label, np.uint8)).save(buffer, "PNG")
            rows["image"].append({"bytes": buffer.getvalue(), "path": None})
            rows["label"].append(label)
        facts = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = pyarrow.table(rows).replace_schema_metadata({"huggingface": json.dumps(facts)})
        parquet.write_table(table, folder / f"{part}.parquet")
    data = load_from(folder, tmp_path)
    assert data.classes == ("angry", "happy", "sad") and [len(split) for split in data.splits.values()] == [6, 3]
    grey = dict(
        zip(data.split("val").labels.tolist(), np.asarray(data.split("val").images)[:, 0, 0].tolist(), strict=True)
    )
    assert grey == {0: 122, 1: 120, 2: 121}
    twice = {column: values * 2 for column, values in rows.items()}
    parquet.write_table(pyarrow.table(twice), tmp_path / "bare.parquet")  # nothing says what the numbers are
    with pytest.raises(UserError, match=r"'label 0' \(2 images\), 'label 1'.* are no class"):
        load_from(tmp_path / "bare.parquet", tmp_path)
    text = "label 0=happy,label 1=sad,label 2=angry"
    with pytest.raises(UserError, match="no class has two different images"):  # read, then: all are one picture
        load_from(tmp_path / "bare.parquet", tmp_path, classes=text)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1" + bytes(40))
    with pytest.raises(UserError, match=r"bad.parquet: no Parquet file, or damaged"):
        load_from(tmp_path / "bad.parquet", tmp_path)


# --- From training to prediction ---


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A run over two classes of another kind, its folder and the data's."""
    place = tmp_path_factory.mktemp("pets")
    faces = write_folders(place / "faces", train=140, val=0, test=28)
    for split in faces.iterdir():
        for name in CLASSES[2:]:
            shutil.rmtree(split / name)
        (split / "angry").rename(split / "Glasses")
        (split / "disgust").rename(split / "none")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        status = interface.main([*QUICK, "--data", "faces", "--classes", "auto", "--run", "pets", "--batch-size", "4"])
    assert status == 0
    return place


def test_a_run_with_other_classes_has_its_names_everywhere(pets, monkeypatch, capsys):
    monkeypatch.chdir(pets)
    assert {"curves.png", "confusion.png", "mistakes.png"} <= {file.name for file in (pets / "runs/pets").iterdir()}
    assert score.main(["--data", "faces", "--split", "val", "--weights", "runs/pets"]) == 0
    out = capsys.readouterr().out
    assert "Glasses" in out and "angry" not in out and "it may have seen" not in out
    assert predict.main(["faces/test", "--weights", "runs/pets", "--csv", "x.csv", "--sheet", "s.png"]) == 0
    out = capsys.readouterr().out
    assert "(true Glasses)" in out and "accuracy " in out
    header, first = (pets / "x.csv").read_text().splitlines()[:2]
    assert ",Glasses,none,true," in header and ",Glasses," in first
    assert predict.main(["faces/test", "--weights", "runs/pets", "--annotate", "drawn", "--quiet"]) == 0


def test_weights_score_the_classes_that_both_have_and_say_what_is_left_out(pets, monkeypatch, capsys):
    monkeypatch.chdir(pets)
    folder = rename(write_folders(pets / "other", train=70), {"fear": "contempt", "sad": ""})
    assert score.main(["--data", str(folder), "--split", "val"]) == 0
    out = capsys.readouterr().out
    assert "left out: 'contempt'" in out and "of 20)" in out and re.search("^val  fear +- ", out, re.MULTILINE)
    assert score.main(["--data", str(folder), "--weights", "runs/pets"]) == 2
    assert "none of these weights' classes: Glasses, none" in capsys.readouterr().err
    assert predict.main([str(folder / "test"), "--weights", "runs/pets", "--quiet"]) == 0
    assert "not scored: no folder or label names a class of these weights (Glasses, none)" in capsys.readouterr().out


def test_fine_tuning_keeps_the_body_and_the_rows_of_common_classes(pets, monkeypatch):
    from model import build_model
    from utils import pick_machine
    from weights import load_pretrained, load_weights

    monkeypatch.chdir(pets)
    machine, own = pick_machine("cpu", "fp32"), ("none", "cat", "Glasses")
    config = Config(pretrained="runs/pets", model="EmotionResNet-nano", width=0.25)
    there, content = load_weights(pets / "runs/pets/best.pth", machine=machine)
    model = build_model("EmotionResNet-nano", width=0.25, num_classes=3)
    new = model.state_dict()["classifier.weight"][1].clone()
    load_pretrained(model, config, own, machine=machine)
    found, old = model.state_dict(), there.state_dict()
    assert content["classes"] == ["Glasses", "none"]
    assert found["classifier.weight"][[2, 0]].equal(old["classifier.weight"]) and found["classifier.weight"][1].equal(
        new
    )
    assert all(found[name].equal(value) for name, value in old.items() if not name.startswith("classifier"))
    arguments = [*QUICK, "--data", "faces", "--classes", "none,Glasses", "--pretrained", "runs/pets", "--run", "again"]
    assert interface.main([*arguments, "--batch-size", "4"]) == 0


def test_the_text_for_weights_has_their_classes_and_what_else_means_them():
    content = {"classes": ["a", "b"], "config": {"classes": "1=a,2=b,3=c"}}
    assert text_for(content) == "a,b,1=a,2=b" and text_for(content, "9=b,8=z") == "a,b,9=b"
    assert text_for({"classes": ["a", "b"], "config": {"classes": "auto"}}) == "a,b"


@pytest.mark.parametrize("labels", [True, False])
def test_a_table_is_predicted_and_scored_where_it_has_labels(tmp_path, labels, capsys):
    keep = slice(None) if labels else slice(1, 2)
    header = "emotion,pixels,Usage" if labels else "pixels"
    path = small_table(tmp_path / "x.csv", names=NUMBERS, header=header, change=lambda cells: ",".join(cells[keep]))
    assert predict.main([str(path), "--csv", str(tmp_path / "out.csv")]) == 0
    out = capsys.readouterr().out
    assert ("(true disgust)" in out) == labels == ("macro-F1" in out) and ("not scored: " in out) != labels
    assert "28 images" in out and len((tmp_path / "out.csv").read_text().splitlines()) == 29


def test_the_nearest_folder_upwards_names_the_class(tmp_path, capsys):
    folder = write_folders(tmp_path / "a", train=7, val=0, test=0) / "train"
    for name in CLASSES:
        (folder / name / "person 1").mkdir()
        for file in (folder / name).glob("*.png"):
            file.rename(folder / name / "person 1" / file.name)
    predict.main([str(folder)])
    assert "(true angry)" in (out := capsys.readouterr().out) and "7 images in train/" in out
    predict.main([str(folder / "sad" / "person 1")])
    assert "(true sad)" in capsys.readouterr().out
    assert class_of("person 1", SEVEN) == ""


def test_an_application_with_modules_of_the_same_names_calls_the_script(tmp_path):
    for name in ("config.py", "utils.py", "classes.py"):
        (tmp_path / name).write_text("raise SystemExit('not this one')")
    Image.fromarray(np.full((48, 48), 90, np.uint8)).save(tmp_path / "face.png")
    command = [sys.executable, str(REPO / "predict.py"), "face.png", "--json", "-"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and [row["file"] for row in json.loads(done.stdout)] == ["face.png"]
