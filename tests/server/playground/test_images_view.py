"""The view for images: what a reader does and sees, against models that answer at once."""

import asyncio
import base64
import io
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import Locator, Page, expect

from engine.contract.draw import (
    DenoisingFacts,
    EditParams,
    GuidanceKind,
    ImageRequest,
    ImageTask,
    InpaintParams,
)
from engine.contract.pixels import Pixels
from engine.contract.reference_images import ReferenceFacts
from engine.errors import QueueFull
from tests.helpers.server.fake_images import (
    DENOISING,
    image_info,
    matting_info,
    picture,
    upscaler_info,
)
from tests.helpers.server.fake_server import until
from tests.helpers.server.image_server import ImageServer, saved
from tests.helpers.server.picture_server import noise

pytestmark = pytest.mark.asyncio(loop_scope="session")

SIDE = 64
"""Width and height of the pictures that the model draws unless asked for others."""
TIMES = " \N{MULTIPLICATION SIGN} "


@pytest_asyncio.fixture(loop_scope="session")
async def server() -> ImageServer:
    painter = image_info("painter", adapters=("ink", "fog"))
    return ImageServer(painter, upscaler_info(), matting_info())


@pytest_asyncio.fixture(loop_scope="session")
async def page(server: ImageServer, start_visit: Any) -> Page:
    visit = await start_visit(server, "images", accept_downloads=True)
    await expect(visit.page.get_by_label("Prompt", exact=True)).to_be_visible()
    one: Page = visit.page
    return one


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def history(page: Page) -> Locator:
    return page.locator(".picture-history li")


async def draw(page: Page, prompt: str = "") -> str:
    """Draw one picture and wait for it. Gives the prompt."""
    prompt = prompt or f"a red circle {random.randrange(10**6)}"
    await page.get_by_label("Prompt", exact=True).fill(prompt)
    await page.get_by_label("Prompt", exact=True).press("Enter")
    await expect(button(page, "Download")).to_be_visible()
    return prompt


async def downloaded(page: Page) -> bytes:
    async with page.expect_download() as coming:
        await button(page, "Download").click()
    path: Path = await (await coming.value).path()
    return await asyncio.to_thread(path.read_bytes)


def pixels_of(data: bytes) -> Pixels:
    image = Image.open(io.BytesIO(data))
    width, height = image.size
    channels = len(image.getbands())
    return Pixels(width=width, height=height, channels=channels, data=image.tobytes())


def marked(request: ImageRequest) -> np.ndarray[Any, Any]:
    """Where the request is to change the picture."""
    assert request.mask is not None
    mask = np.frombuffer(request.mask.data, np.uint8)
    return mask.reshape(request.mask.height, request.mask.width) > 127


async def drop(page: Page, data: bytes) -> None:
    """Drop a file onto the view."""
    code = """(base64) => {
        const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([bytes], "a.png", { type: "image/png" }));
        const options = { dataTransfer, bubbles: true, cancelable: true };
        const view = document.querySelector(".images");
        view.dispatchEvent(new DragEvent("dragover", options));
        view.dispatchEvent(new DragEvent("drop", options));
    }"""
    await page.evaluate(code, base64.b64encode(data).decode())


async def test_draws_what_is_described(server: ImageServer, page: Page) -> None:
    width, height = 8 * random.randint(4, 12), 8 * random.randint(4, 12)
    await page.get_by_label("Size").select_option("custom")
    await page.get_by_label("Width").fill(str(width))
    await page.get_by_label("Height").fill(str(height))
    await page.get_by_label("Negative prompt").fill("a star")
    await page.get_by_text("More settings").click()
    steps = page.get_by_role("spinbutton", name="Steps")
    await steps.fill("3")
    prompt = await draw(page)
    params = server.last.params
    assert server.last.prompt == prompt
    assert (params.width, params.height, params.num_inference_steps) == (width, height, 3)
    assert params.negative_prompt == "a star"
    assert pixels_of(await downloaded(page)) == picture(server.last, 0)
    await expect(page.get_by_text(f"Seed {params.seed}")).to_be_visible()
    await expect(history(page)).to_have_count(1)
    await page.reload()
    await history(page).get_by_role("button", name=prompt).click()
    await expect(page.locator(".result-prompt")).to_have_text(prompt)
    assert pixels_of(await downloaded(page)) == picture(server.last, 0)


async def test_previews_appear_and_the_reader_can_cancel(server: ImageServer, page: Page) -> None:
    server.engine.step_s = 0.5
    await page.get_by_text("More settings").click()
    await page.get_by_role("spinbutton", name="Steps").fill("50")
    await page.get_by_label("Prompt", exact=True).fill("a star")
    await button(page, "Draw").click()
    await expect(page.get_by_role("img", name="Preview 1")).to_be_visible()
    await expect(page.get_by_role("progressbar", name="Drawing")).to_be_visible()
    await button(page, "Cancel").click()
    await expect(page.get_by_text("Describe a picture")).to_be_visible()
    await until(lambda: server.last.request_id in server.engine.aborted)
    await expect(history(page)).to_have_count(0)


async def test_a_preview_is_as_large_as_the_finished_picture(
    server: ImageServer, page: Page
) -> None:
    paint = server.engine.draw

    def hold_after_the_first(request: ImageRequest, index: int) -> Pixels:
        server.engine.draw = paint
        server.engine.hold()
        return paint(request, index)

    server.engine.draw = hold_after_the_first
    width, height = random.sample(range(32, 104, 8), 2)
    await page.get_by_label("Size").select_option("custom")
    await page.get_by_label("Width").fill(str(width))
    await page.get_by_label("Height").fill(str(height))
    await page.get_by_label("Prompt", exact=True).fill("a star")
    await button(page, "Draw").click()
    preview = page.get_by_role("img", name="Preview 1")
    frame = page.locator(".result-picture")
    await expect(frame).to_have_attribute("style", re.compile(rf"\b{4 * width}px"))
    before = await preview.bounding_box()
    server.engine.release()
    await expect(button(page, "Download")).to_be_visible()
    after = await page.get_by_role("img", name="a star").bounding_box()
    assert before is not None and after is not None
    assert (before["width"], before["height"]) == (after["width"], after["height"])


async def test_shows_the_place_in_the_queue(server: ImageServer, page: Page) -> None:
    server.engine.hold()
    waiting = asyncio.create_task(server.generate())
    await until(lambda: len(server.engine.requests) == 1)
    await page.get_by_label("Prompt", exact=True).fill("a star")
    await button(page, "Draw").click()
    await expect(page.get_by_text("Place 2 in the queue")).to_be_visible()
    server.engine.release()
    await expect(button(page, "Download")).to_be_visible()
    await waiting


async def test_a_locked_seed_gives_the_same_bits(server: ImageServer, page: Page) -> None:
    prompt = await draw(page)
    first = await downloaded(page)
    await page.get_by_role("button", name="A new seed each time").click()
    await draw(page, prompt)
    await expect(history(page)).to_have_count(2)
    assert await downloaded(page) == first
    await page.get_by_role("button", name="The seed is kept").click()
    await draw(page, prompt)
    await expect(history(page)).to_have_count(3)
    seeds = [request.params.seed for request in server.engine.requests_for("draw")]
    assert seeds[0] == seeds[1] != seeds[2]


async def test_a_grid_has_a_picture_for_each_seed_and_scale(
    server: ImageServer, page: Page
) -> None:
    seed = random.randrange(2**62)
    await page.get_by_label("Seed", exact=True).fill(str(seed))
    await page.get_by_role("spinbutton", name="Pictures").fill("2")
    await page.get_by_label("ink", exact=True).check()
    await page.get_by_label("Sweep").check()
    await page.get_by_role("spinbutton", name="ink: from").fill("0.5")
    await page.get_by_role("spinbutton", name="ink: to").fill("1.5")
    await page.get_by_label("Prompt", exact=True).fill("a star")
    await button(page, "Draw").click()
    tiles = page.locator("button.tile")
    await expect(tiles).to_have_count(6)
    assert [[use.scale for use in setting] for setting in server.last.loras] == [[0.5], [1], [1.5]]
    await tiles.nth(3).click()
    await expect(page.get_by_text(f"Seed {seed + 1}")).to_be_visible()
    assert pixels_of(await downloaded(page)) == picture(server.last, 3)
    # Its own settings make this one again, alone.
    await button(page, "More").click()
    await page.get_by_role("menuitem", name="Restore its settings").click()
    await button(page, "Draw").click()
    await expect(button(page, "Download")).to_be_visible()
    assert server.last.params.n == 1
    assert server.last.params.seed == seed + 1
    assert [[use.scale for use in setting] for setting in server.last.loras] == [[1]]


async def test_a_dropped_picture_redraws_the_same_bits(server: ImageServer, page: Page) -> None:
    settings = {
        "prompt": f"a green star {random.randrange(100)}",
        "negative_prompt": "a circle",
        "seed": random.randrange(2**53, 2**63),
        "size": f"{8 * random.randint(4, 12)}x{8 * random.randint(4, 12)}",
        "num_inference_steps": random.randint(1, 9),
        "guidance_scale": round(random.uniform(1.5, 9), 2),
        "scheduler": random.choice(DENOISING.schedulers),
        "loras": [{"name": "fog", "scale": 0.25}],
    }
    answer = (await server.generate(**settings)).json()
    data = base64.b64decode(answer["data"][0]["b64_json"])
    await drop(page, data)
    await expect(page.get_by_label("Prompt", exact=True)).to_have_value(settings["prompt"])
    await expect(page.get_by_label("Seed", exact=True)).to_have_value(str(settings["seed"]))
    await button(page, "Draw").click()
    await expect(history(page)).to_have_count(1)
    assert await downloaded(page) == data


async def test_a_mask_by_keyboard_in_four_actions(server: ImageServer, page: Page) -> None:
    await draw(page)
    await button(page, "Mask").press("Enter")
    await expect(page.get_by_role("application", name="Mask")).to_be_focused()
    await page.keyboard.press("ArrowLeft")
    await page.keyboard.press(" ")
    await page.keyboard.press("Control+Enter")
    await expect(history(page)).to_have_count(2)
    assert isinstance(server.last.params, InpaintParams)
    assert pixels_of(await downloaded(page)) == picture(server.last, 0)
    mask = marked(server.last)
    size, x, y = SIDE // 4, SIDE // 2 - SIDE // 8, SIDE // 2
    assert mask[y, x] and mask.shape == (SIDE, SIDE)
    assert mask.sum() == pytest.approx(np.pi * size**2 / 4, rel=0.1)
    await page.get_by_role("radio", name="Before and after").check()
    line = page.get_by_role("slider", name="Share of the earlier picture")
    await line.press("Home")
    await expect(page.locator(".compare-line")).to_have_css("left", "0px")


async def test_the_tools_of_the_mask(server: ImageServer, page: Page) -> None:
    """Sizes of their own, steps back and forth, shapes, and the whole mask at once."""
    await draw(page)
    await button(page, "Mask").click()
    canvas = page.get_by_role("application", name="Mask")
    share = page.locator(".mask-foot [role=status]")
    size = page.locator(".tool-size output")
    await expect(canvas).to_be_focused()
    for key in "]]e[":
        await page.keyboard.press(key)
    await expect(size).to_have_text("13")
    await page.keyboard.press("b")
    await expect(size).to_have_text("23")
    box = await canvas.bounding_box()
    assert box is not None
    scale = min(box["width"], box["height"]) / SIDE
    left, top = (box["x"] + (box["width"] - SIDE * scale) / 2), box["y"]

    async def drag(*points: tuple[float, float]) -> None:
        await page.mouse.move(left + points[0][0] * scale, top + points[0][1] * scale)
        await page.mouse.down()
        for x, y in points[1:]:
            await page.mouse.move(left + x * scale, top + y * scale, steps=2)
        await page.mouse.up()

    await page.keyboard.press("r")
    await drag((8, 16), (40, 48))
    await expect(share).to_have_text("25 % of the picture is marked.")
    await page.keyboard.press("l")
    await drag((8, 16), (8, 48), (40, 48), (40, 52), (8, 52))
    await expect(share).to_have_text("28 % of the picture is marked.")
    await page.keyboard.press("Control+z")
    await expect(share).to_have_text("25 % of the picture is marked.")
    await page.keyboard.press("Control+Shift+z")
    await expect(share).to_have_text("28 % of the picture is marked.")
    await page.keyboard.press("i")
    await expect(share).to_have_text("72 % of the picture is marked.")
    await page.keyboard.press("Delete")
    await expect(share).to_have_text("Paint over what should change.")
    await button(page, "Undo").click()
    await button(page, "Undo").click()
    await page.get_by_role("spinbutton", name="Feather").fill("7")
    await button(page, "Draw").click()
    await expect(history(page)).to_have_count(2)
    expected = np.zeros((SIDE, SIDE), bool)
    expected[16:52, 8:40] = True
    assert (marked(server.last) != expected).sum() <= 2 * SIDE
    assert server.last.params.feather == 7
    # A mask from a file, in OpenAI's notation.
    alpha = np.zeros((SIDE, SIDE, 4), np.uint8)
    alpha[: SIDE // 4, :, 3] = 255
    await page.get_by_role("radio", name="Input", exact=True).check()
    file = {"name": "m.png", "mimeType": "image/png", "buffer": saved(Image.fromarray(alpha))}
    await page.get_by_label("Load a mask", exact=True).last.set_input_files(file)
    await expect(share).to_have_text("75 % of the picture is marked.")


async def test_the_mask_shows_how_its_edge_is_blended(server: ImageServer, page: Page) -> None:
    await draw(page)
    await button(page, "Mask").click()
    half = np.full((SIDE, SIDE), 255, np.uint8)
    half[:, SIDE // 2 :] = 0
    file = {"name": "m.png", "mimeType": "image/png", "buffer": saved(Image.fromarray(half))}
    await page.get_by_label("Load a mask", exact=True).last.set_input_files(file)
    await expect(page.locator(".mask-foot [role=status]")).to_contain_text("50 %")

    async def colours(feather: int) -> Any:
        await page.get_by_role("spinbutton", name="Feather").fill(str(feather))
        await page.evaluate("new Promise((done) => setTimeout(done, 100))")
        shown = await page.get_by_role("application", name="Mask").screenshot()
        row = np.asarray(Image.open(io.BytesIO(shown)).convert("RGB"), int)
        side = min(row.shape[:2])
        left = (row.shape[1] - side) // 2
        at = [left + round(x * side / SIDE) for x in (4, SIDE // 2 - 2, SIDE - 4)]
        return row[row.shape[0] // 2, at]

    hard, soft = await colours(0), await colours(16)
    changes = abs(hard - soft).max(axis=1)
    assert changes[1] > 20
    assert max(changes[0], changes[2]) <= 8


async def test_zooms_about_the_cursor(server: ImageServer, page: Page) -> None:
    """A dot that is painted while zoomed in lies where the cursor is."""
    await draw(page)
    await button(page, "Mask").click()
    canvas = page.get_by_role("application", name="Mask")
    await expect(canvas).to_be_focused()
    for key in ("[", "[", "[", "Shift+ArrowRight", "+", "+", "+"):
        await page.keyboard.press(key)
    moves = random.choices(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"], k=12)
    for key in moves:
        await page.keyboard.press(key)
    size = int(await page.locator(".tool-size output").inner_text())
    x, y = SIDE // 2 + 1, SIDE // 2
    for key in moves:
        step = (size + 1) // 2  # as JavaScript rounds
        x = min(SIDE, max(0, x + step * (key == "ArrowRight") - step * (key == "ArrowLeft")))
        y = min(SIDE, max(0, y + step * (key == "ArrowDown") - step * (key == "ArrowUp")))
    await page.keyboard.press(" ")
    await page.keyboard.press("Control+Enter")
    await expect(history(page)).to_have_count(2)
    rows, columns = np.nonzero(marked(server.last))
    assert abs(columns.mean() + 0.5 - x) < size / 2
    assert abs(rows.mean() + 0.5 - y) < size / 2


async def test_extends_a_picture_by_its_edges(server: ImageServer, page: Page) -> None:
    await draw(page)
    await button(page, "Use as input").click()
    await page.get_by_role("radio", name="Extend").check()
    await button(page, "Draw").click()
    await expect(page.get_by_role("alert")).to_contain_text("Drag an edge")
    await page.get_by_role("spinbutton", name="Top").fill("16")
    await page.get_by_role("spinbutton", name="Top").press("Tab")
    frame = await page.locator(".outpaint-frame").bounding_box()
    edge = await page.locator(".edge.is-right i").bounding_box()
    assert frame is not None and edge is not None
    x, y = edge["x"] + edge["width"] / 2, edge["y"] + edge["height"] / 2
    await page.mouse.move(x, y)
    await page.mouse.down()
    await page.mouse.move(x + 32 * frame["width"] / SIDE, y, steps=3)
    await page.mouse.up()
    await expect(page.get_by_role("spinbutton", name="Right")).to_have_value("32")
    await button(page, "Draw").click()
    await expect(history(page)).to_have_count(2)
    outpaint = server.last.params.outpaint
    assert (outpaint.left, outpaint.right, outpaint.top, outpaint.bottom) == (0, 32, 16, 0)
    await expect(page.get_by_text(f"{SIDE + 32}{TIMES}{SIDE + 16}")).to_be_visible()


async def test_follows_an_instruction_and_redraws(server: ImageServer, page: Page) -> None:
    drawn = await draw(page)
    first = picture(server.last, 0)
    await button(page, "Use as input").click()
    await page.get_by_role("radio", name="Instruct").check()
    await page.get_by_label("Instruction").fill("make it blue")
    await page.get_by_label("Instruction").press("Enter")
    await expect(history(page)).to_have_count(2)
    assert isinstance(server.last.params, EditParams)
    assert server.last.images == [first]
    await page.get_by_role("radio", name="Redraw").check()
    await page.get_by_role("spinbutton", name="Strength").fill("0.4")
    await button(page, "Draw").click()
    await expect(history(page)).to_have_count(3)
    assert server.last.params.task is ImageTask.IMAGE_TO_IMAGE
    assert server.last.params.strength == 0.4
    # A kept picture brings its input along.
    await button(page, "Remove the input").click()
    await history(page).nth(1).get_by_role("button").click()
    await button(page, "More").click()
    await page.get_by_role("menuitem", name="Restore its settings").click()
    await expect(page.get_by_label("Instruction")).to_have_value("make it blue")
    await button(page, "Draw").click()
    await expect(history(page)).to_have_count(4)
    assert server.last.images == [first]
    assert drawn != server.last.prompt == "make it blue"


async def test_an_instruction_refers_to_several_pictures(start_visit: Any, tmp_path: Path) -> None:
    references = ReferenceFacts(max_images=3, size_multiple=8, max_pixels=SIDE * SIDE)
    server = ImageServer(image_info("painter", references=references))
    page = (await start_visit(server, "images")).page
    pictures = [noise(SIDE, SIDE) for _ in range(4)]
    for i, one in enumerate(pictures):
        one.save(tmp_path / f"{i}.png")
    files = [tmp_path / f"{i}.png" for i in range(4)]
    await page.locator(".source input[type=file]").set_input_files(files[0])
    await page.get_by_role("radio", name="Instruct").check()
    more = page.locator(".source input[type=file][multiple]")
    await more.set_input_files([files[1], files[2], files[3]])
    await expect(page.locator(".source .attached li")).to_have_count(2)
    await expect(button(page, "Add pictures")).to_have_count(0)
    await button(page, "Remove picture 2").click()
    await more.set_input_files([files[3]])
    await page.get_by_label("Instruction").fill("put picture 2 beside picture 1")
    await page.get_by_label("Instruction").press("Enter")
    await expect(history(page)).to_have_count(1)
    sent = [image.data for image in server.last.images]
    assert sent == [pictures[i].tobytes() for i in (0, 2, 3)]
    # A kept picture brings all of them along.
    await button(page, "Remove the input").click()
    await button(page, "More").click()
    await page.get_by_role("menuitem", name="Restore its settings").click()
    await expect(page.get_by_alt_text("Picture 3")).to_be_visible()
    await button(page, "Draw").click()
    await expect(history(page)).to_have_count(2)
    assert [image.data for image in server.last.images] == sent


async def test_enlarges_and_cuts_out(server: ImageServer, page: Page) -> None:
    await draw(page)
    drawn = picture(server.last, 0)
    await button(page, "Enlarge").click()
    await expect(page.get_by_text("Consistency 42.1 dB, 25 % of pixels changed")).to_be_visible()
    await expect(page.get_by_text(f"{2 * SIDE}{TIMES}{2 * SIDE}")).to_be_visible()
    [request] = server.engine.requests_for("enlarge")
    assert request.image == drawn
    await page.get_by_role("radio", name="Before and after").check()
    await expect(page.locator(".compare img")).to_have_count(2)
    await page.get_by_role("radio", name="Heat map").check()
    await expect(page.get_by_role("img", name="Heat map")).to_be_visible()
    await button(page, "Cut out").click()
    await expect(page.get_by_text("Cut out by cutter")).to_be_visible()
    await expect(page.get_by_text("a warning")).to_be_visible()
    cut = Image.open(io.BytesIO(await downloaded(page)))
    assert (cut.mode, cut.size) == ("RGBA", (2 * SIDE, 2 * SIDE))


async def test_copies_a_program_that_makes_the_picture(
    server: ImageServer, start_visit: Any, tmp_path: Path
) -> None:
    permissions = ["clipboard-read", "clipboard-write"]
    page = (await start_visit(server, "images", permissions=permissions)).page
    await draw(page, 'a "red" circle, 100 %, isn\'t it\n: true, null')
    drawn = pixels_of(await downloaded(page))

    async def copied(name: str) -> str:
        await button(page, "More").click()
        await page.get_by_role("menuitem", name=name).click()
        text: str = await page.evaluate("navigator.clipboard.readText()")
        return text

    for look in ("text", "mask"):
        program = await copied("Copy as Python")
        for name in ("in.png", "mask.png", "out.png"):
            program = program.replace(f'"{name}"', repr(str(tmp_path / name)))
        await asyncio.to_thread(exec, program, {})
        assert pixels_of((tmp_path / "out.png").read_bytes()) == drawn, look
        line = (await copied("Copy as curl")).split("|")[0]
        shell = await asyncio.create_subprocess_shell(
            line, stdout=asyncio.subprocess.PIPE, cwd=tmp_path
        )
        answer, _ = await shell.communicate()
        assert base64.b64encode((tmp_path / "out.png").read_bytes()) in answer, look
        if look == "mask":
            break
        (tmp_path / "in.png").write_bytes(await downloaded(page))
        await button(page, "Mask").click()
        await expect(page.get_by_role("application", name="Mask")).to_be_focused()
        await page.keyboard.press("i")
        await page.keyboard.press("Control+Enter")
        await expect(history(page)).to_have_count(2)
        drawn = pixels_of(await downloaded(page))
        (tmp_path / "mask.png").write_bytes(saved(Image.new("L", (SIDE, SIDE), 255)))


async def test_shows_what_the_server_says(server: ImageServer, page: Page) -> None:
    await draw(page)
    await expect(page.get_by_role("alert")).to_have_count(0)
    server.engine.submit_error = QueueFull("there are too many pictures; wait a minute")
    await button(page, "Draw").click()
    await expect(page.get_by_role("alert")).to_contain_text("too many pictures; wait a minute")
    await expect(button(page, "Download")).to_be_visible()
    server.engine.submit_error = None
    server.engine.warnings = ("the moon is not known",)
    await button(page, "Draw").click()
    await expect(page.get_by_text("the moon is not known")).to_be_visible()
    await expect(page.get_by_role("alert")).to_have_count(0)
    await drop(page, b"no picture at all")
    await expect(page.get_by_role("alert")).to_be_visible()


async def test_offers_only_what_the_model_can_do(start_visit: Any) -> None:
    facts = DenoisingFacts(
        guidance=GuidanceKind.NONE, schedulers=("euler",), default_steps=4, default_guidance_scale=1
    )
    info = image_info("fast", tasks=(ImageTask.TEXT_TO_IMAGE,), denoising=facts)
    server = ImageServer(info, load_on_first_use=False)
    page = (await start_visit(server, "images")).page
    await draw(page)
    for name in ("Choose a picture", "Use as input", "Mask", "Enlarge", "Cut out"):
        await expect(button(page, name)).to_have_count(0)
    await page.get_by_text("More settings").click()
    await expect(page.get_by_label("Steps", exact=True)).to_be_visible()
    for name in ("Negative prompt", "Guidance", "ink"):
        await expect(page.get_by_label(name, exact=True)).to_have_count(0)


async def test_keeps_a_bounded_number_of_pictures(server: ImageServer, start_visit: Any) -> None:
    visit = await start_visit(server, "chat")
    code = """async () => {
        const { history, keep } = await import(new URL("playground/images/history.js", location));
        for (let i = 0; i < 125; i += 1) await keep({ blob: new Blob(["x"]), label: `${i}.` });
        return history.value.length;
    }"""
    assert await visit.page.evaluate(code) == 120
    await visit.page.reload()
    await visit.open("images")
    await expect(history(visit.page)).to_have_count(120)
    await expect(button(visit.page, "124.")).to_be_visible()
    await expect(button(visit.page, "4.")).to_have_count(0)


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_everybody_can_use_it(server: ImageServer, start_visit: Any, theme: str) -> None:
    """No fault of accessibility in any state, and nothing wider than a narrow screen."""
    viewport = {"width": 360, "height": 740}
    visit = await start_visit(server, "images", color_scheme=theme, viewport=viewport)
    page = visit.page

    async def check(state: str) -> None:
        width = await page.evaluate("document.querySelector('main > .kept').scrollWidth")
        assert width <= viewport["width"], state
        assert await visit.faults() == [], state

    await page.get_by_text("More settings").click()
    await page.get_by_label("ink", exact=True).check()
    await draw(page)
    await check("result")
    await button(page, "Enlarge").click()
    await page.get_by_role("radio", name="Before and after").check()
    await check("comparison")
    await button(page, "Use as input").click()
    await page.get_by_role("radio", name="Mask").check()
    await expect(button(page, "Lasso (L)")).to_be_visible()
    await check("mask")
    await page.get_by_role("radio", name="Extend").check()
    await expect(page.locator(".outpaint-frame img")).to_be_visible()
    await check("extension")
