"""What a predictor says is what the evaluation scored, however the images come."""

import jax
import numpy as np
import pytest

import sasa_jax
from sasa_jax.prediction import ImageError
from sasa_jax.tasks import normalise


def images_of(run):
    return [run.split[place]["image"] for place in range(len(run.split))]


@pytest.mark.parametrize("variables", ["average", "raw"])
def test_its_accuracy_is_the_evaluation_s(digits_run, variables):
    model = sasa_jax.load(digits_run.workdir, variables=variables)
    results = model(images_of(digits_run), top_k=10, batch_size=64)
    labels = [digits_run.split[place]["label"] for place in range(len(digits_run.split))]
    first = [result.indices[0] == label for result, label in zip(results, labels, strict=True)]
    places = [result.indices.index(label) for result, label in zip(results, labels, strict=True)]
    right = [result.scores[place] for result, place in zip(results, places, strict=True)]
    expected = digits_run.evaluation.metrics[variables]
    assert sum(first) == expected["correct"] and len(results) == expected["images"] == 150
    assert np.mean(np.array(places) < 5) == pytest.approx(expected["top5_accuracy"])
    assert -np.mean(np.log(right)) == pytest.approx(expected["loss"], rel=1e-5)


def test_its_boxes_are_the_evaluation_s(scenes_run, scenes_model):
    files = scenes_run.evaluation.files
    truth, scored = files["annotations.json"], files["detections.json"]
    results = scenes_model(images_of(scenes_run), batch_size=4)
    ids = {category["name"]: category["id"] for category in truth["categories"]}
    found = [
        (image["id"], ids[name], score, left, top, right - left, bottom - top)
        for image, result in zip(truth["images"], results, strict=True)
        for name, score, (top, left, bottom, right) in zip(
            result.names, result.scores, result.boxes, strict=True
        )
    ]
    assert len(found) == len(scored) > 100
    expected = [(r["image_id"], r["category_id"], r["score"], *r["bbox"]) for r in scored]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_boxes_are_in_pixels_of_the_image_that_was_given(scenes_run, scenes_model):
    pixels = np.asarray(sasa_jax.data.image_transforms.decode(scenes_run.split[0]["image"]))
    twice = pixels.repeat(2, axis=0).repeat(2, axis=1)  # shrinks to the same pixels
    small, large = scenes_model([pixels, twice])
    np.testing.assert_allclose(2 * np.array(small.boxes), large.boxes, rtol=1e-5)
    assert small.names == large.names


def test_few_boxes_on_request(scenes_run, scenes_model):
    image = scenes_run.split[0]["image"]
    (everything,) = scenes_model(image)
    (best,) = scenes_model(image, max_detections=3)
    assert best.boxes == everything.boxes[:3] and len(everything.boxes) > 3
    limit = everything.scores[2]
    (sure,) = scenes_model(image, min_score=limit)
    assert sure.scores == tuple(score for score in everything.scores if score >= limit)


def test_files_contents_and_pixels_are_the_same(digits_run, digits_model, tmp_path):
    content = digits_run.split[0]["image"]
    file = tmp_path / "digit"
    file.write_bytes(content)
    pixels = sasa_jax.data.image_transforms.decode(content)
    expected = digits_model(content)
    assert len(expected) == 1
    for same in (file, str(file), pixels, pixels[..., :1], [content], pixels[None]):
        assert digits_model(same) == expected


def test_scores_are_the_network_s_probabilities(digits_run, digits_model):
    prepared = digits_model.preprocess(digits_run.split[0]["image"])["image"]
    logits = digits_model.network(normalise(prepared[None]))
    assert prepared.shape == (32, 32, 3) and prepared.dtype == np.uint8
    assert logits.shape == (1, 10) and logits.dtype == np.float32
    (result,) = digits_model(digits_run.split[0]["image"], top_k=99)
    assert sum(result.scores) == pytest.approx(1)
    assert list(result.scores) == sorted(result.scores, reverse=True)
    assert [result.names[place] for place in range(10)] == [str(i) for i in result.indices]
    expected = jax.nn.softmax(logits)[0, np.array(result.indices)]
    np.testing.assert_allclose(result.scores, expected, rtol=1e-5)


def test_a_detector_s_parts(scenes_run, scenes_model):
    prepared = scenes_model.preprocess(scenes_run.split[0]["image"])
    assert {key: value.shape for key, value in prepared.items()} == {
        "image": (96, 96, 3),
        "scale": (),
        "size": (2,),
    }
    images = normalise(prepared["image"][None])
    logits, codes = jax.eval_shape(scenes_model.network, images)
    assert logits.shape == (1, codes.shape[1], 10) and codes.shape[2] == 4


def test_one_program_serves_all_batches_of_a_size(digits_run, traces):
    model = sasa_jax.load(digits_run.workdir)
    images = images_of(digits_run)[:21]
    del traces[:]
    whole = model(images, batch_size=8)
    again = [prediction.result for prediction in model.stream(iter(images), batch_size=8)]
    assert [image.shape for image in traces] == [(8, 32, 32, 3)]
    assert whole == again
    for image, result in zip(images[18:], whole[18:], strict=True):
        (alone,) = model(image)
        assert alone.indices[0] == result.indices[0]
        np.testing.assert_allclose(alone.scores, result.scores, rtol=1e-4, atol=1e-6)


def test_a_stream_goes_on_after_what_it_cannot_read(digits_model, photos, tmp_path):
    files = [*sorted(photos.iterdir()), tmp_path / "nowhere.png"]
    predictions = list(digits_model.stream(files, batch_size=4))
    assert [prediction.image for prediction in predictions] == files
    failed = [prediction for prediction in predictions if prediction.error]
    assert [prediction.image.name for prediction in failed] == ["2_broken.jpg", "nowhere.png"]
    assert all(prediction.result is None for prediction in failed)
    assert "2_broken.jpg cannot be read: OpenCV cannot decode" in str(failed[0].error)
    assert "nowhere.png cannot be read: No such file or directory" in str(failed[1].error)
    alone = digits_model(files[4])
    assert predictions[4].result.indices == alone[0].indices


def test_a_stream_reads_a_few_batches_ahead_and_not_everything(digits_run, digits_model):
    taken = []

    def endless():
        while True:
            taken.append(digits_run.split[0]["image"])
            yield taken[-1]

    stream = digits_model.stream(endless(), batch_size=4, threads=2)
    next(stream)
    stream.close()
    assert len(taken) <= 8 * 4


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "the image cannot be read: OpenCV cannot decode its 0 bytes"),
        (np.zeros((4, 4, 2), np.uint8), "the image cannot be read: image is uint8 [4, 4, 2]"),
        (np.zeros((4, 4, 3), np.float32), "image is float32 [4, 4, 3]; expected uint8"),
        ("no/such.png", "no/such.png cannot be read: No such file"),
        (".", ". cannot be read: Is a directory"),
    ],
)
def test_a_bad_image_is_named(digits_model, image, message):
    with pytest.raises(ImageError) as error:
        digits_model(image)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("digits_model", {"top_k": 0}, "top_k must be at least 1, got 0"),
        ("digits_model", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("scenes_model", {"max_detections": 0}, "max_detections must be at least 1"),
        ("scenes_model", {"min_score": 30}, "min_score must be between 0 and 1, got 30"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_read(request, model, options, message):
    with pytest.raises(ValueError, match=message):
        request.getfixturevalue(model)("no/such.png", **options)


def test_no_images_give_no_results(digits_model):
    assert digits_model([]) == []
