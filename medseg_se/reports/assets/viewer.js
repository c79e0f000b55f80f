/* The 3-D viewer: NiiVue with truth, prediction, both side by side, or their differences; a checkbox for each structure. */
(() => {
  "use strict";
  const root = document.getElementById("viewer");
  if (!root) return;
  const find = (name) => root.querySelector(`[data-part=${name}]`);
  const setup = JSON.parse(document.getElementById("viewer-setup").textContent);
  const { structures, cases } = setup;
  const say = (text) => { find("status").textContent = text; };
  const hidden = new Set();
  const chosen = { show: "prediction", layout: "planes" };
  // Codes of the map of differences.
  const AGREE = 1, MISSED = 2, EXTRA = 3, SWAPPED = 4;
  let panes = [], volumes = null, current = null;

  const table = (colours) => {
    const parts = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    colours.forEach(([name, [red, green, blue], alpha], place) => {
      parts.R.push(red); parts.G.push(green); parts.B.push(blue); parts.A.push(alpha);
      parts.I.push(place + 1); parts.labels.push(name);
    });
    return parts;
  };
  const structureTable = () => table(structures.map(({ name, rgb }, place) => [name, rgb, hidden.has(place + 1) ? 0 : 255]));
  const differenceTable = () => table(setup.differences.map(({ name, rgb }) => [name, rgb, 255]));

  const differences = () => {
    const { truth, prediction } = volumes, found = new Uint8Array(truth.length);
    for (let place = 0; place < truth.length; place++) {
      const real = hidden.has(truth[place]) ? 0 : truth[place], said = hidden.has(prediction[place]) ? 0 : prediction[place];
      if (real || said) found[place] = real === said ? AGREE : !said ? MISSED : !real ? EXTRA : SWAPPED;
    }
    return found;
  };

  async function makePane(canvas) {
    const nv = new niivue.Niivue({
      isRadiologicalConvention: true, sagittalNoseLeft: true, isOrientCube: true, dragAndDropEnabled: false, show3Dcrosshair: true,
      scrollRequiresFocus: true, multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS, crosshairWidth: 0.4, crosshairWidthUnit: "percent", showAllOrientationMarkers: true, logLevel: "error",
      crosshairColor: [1, 0.8, 0.2, 0.9], fontColor: [1, 1, 1, 1], isNearestInterpolation: false, loadingText: "", clipPlaneColor: [0, 0, 0, 0],
    });
    await nv.attachToCanvas(canvas, false);
    nv.onLocationChange = ({ vox }) => describe(vox);
    return { nv, canvas };
  }

  function describe(vox) {
    if (!volumes) return;
    const [x, y, z] = vox.map((value, axis) => Math.min(volumes.dims[axis] - 1, Math.max(0, Math.round(value))));
    const place = x + volumes.dims[0] * (y + volumes.dims[1] * z);
    const name = (index) => (index ? structures[index - 1].name : "background");
    find("here").textContent = `At the crosshair: truth ${name(volumes.truth[place])}, prediction ${name(volumes.prediction[place])}.`;
  }

  /* Put the maps that are asked for into the panes. */
  function refresh() {
    if (!volumes) return;
    const both = chosen.show === "both";
    const kinds = both ? ["truth", "prediction"] : [chosen.show];
    panes.forEach((pane, place) => { pane.canvas.closest("figure").hidden = !kinds[place]; });
    panes.slice(0, kinds.length).forEach((pane, place) => {
      const kind = kinds[place], figure = pane.canvas.closest("figure");
      figure.querySelector("figcaption").textContent = { truth: "Truth", prediction: "Prediction", differences: "Differences" }[kind];
      pane.labels.img = kind === "differences" ? differences() : volumes[kind];
      pane.labels.setColormapLabel(kind === "differences" ? differenceTable() : structureTable());
      pane.nv.setSliceType(chosen.layout === "planes" ? pane.nv.sliceTypeMultiplanar : pane.nv.sliceTypeRender);
      pane.nv.resizeListener();
      pane.nv.updateGLVolume();
    });
    find("differences").hidden = chosen.show !== "differences";
    root.dataset.drawn = `${current} ${chosen.show} ${chosen.layout} ${[...hidden].sort((a, b) => a - b).join(",")}`;
  }

  async function needPane(place) {
    if (panes[place]) return;
    const figure = root.querySelectorAll("figure")[place];
    figure.hidden = false;
    panes[place] = await makePane(figure.querySelector("canvas"));
    panes.forEach((pane) => pane.nv.broadcastTo(panes.filter((other) => other !== pane).map((other) => other.nv)));
    if (volumes) fill(panes[place]);
  }

  function fill(pane) {
    pane.nv.volumes = [];
    const scan = volumes.scan.clone();
    pane.labels = volumes.map.clone();
    pane.labels.img = volumes.prediction;
    pane.labels.setColormapLabel(structureTable());
    pane.nv.addVolume(scan);
    pane.nv.addVolume(pane.labels);
    pane.nv.setOpacity(0, cases[current].scan ? Number(find("opacity").value) : 0);
    pane.nv.setOpacity(1, Number(find("strength").value));
    pane.nv.setRenderAzimuthElevation(160, 15);
  }

  async function load(place) {
    say("Loading …");
    current = place;
    find("case").value = place;
    const held = JSON.parse(document.getElementById(`case-${place}`).textContent);
    const read = (base64, name, more) => niivue.NVImage.loadFromBase64({ base64, name: `${name}.nii.gz`, ...more });
    const truth = await read(held.truth, "truth"), map = await read(held.prediction, "prediction");
    const scan = held.image ? await read(held.image, "scan", { colormap: "gray", cal_min: 0, cal_max: 255 }) : await read(held.truth, "empty");
    volumes = { scan, map, truth: truth.img, prediction: map.img, dims: truth.hdr.dims.slice(1, 4) };
    const there = new Set([...new Set(truth.img), ...new Set(map.img)]);
    root.querySelectorAll("[data-structure]").forEach((box) => box.closest("label").hidden = !there.has(Number(box.dataset.structure)));
    panes.forEach(fill);
    refresh();
    panes.forEach(({ nv }) => { nv.scene.crosshairPos = nv.vox2frac(cases[place].centre); nv.drawScene(); });
    describe(cases[place].centre);
    say(cases[place].words);
  }

  /* A structure that is not wanted vanishes from the pictures of all cases, too. */
  function toggle() {
    hidden.clear();
    root.querySelectorAll("[data-structure]").forEach((box) => { if (!box.checked) hidden.add(Number(box.dataset.structure)); });
    const rules = [...hidden].map((index) => `.plane .o${index}`).join(",");
    document.getElementById("unwanted").textContent = rules ? `${rules}{display:none}` : "";
    refresh();
  }

  root.addEventListener("change", async ({ target }) => {
    if (target.dataset.structure) toggle();
    else if (target.name === "show") {
      chosen.show = target.value;
      if (chosen.show === "both") await needPane(1);
      refresh();
    } else if (target.name === "layout") { chosen.layout = target.value; refresh(); } else if (target.dataset.part === "case") await load(target.value);
  });
  root.addEventListener("input", ({ target }) => {
    const value = Number(target.value);
    panes.forEach(({ nv }) => {
      if (target.dataset.part === "opacity" && cases[current].scan) nv.setOpacity(0, value);
      if (target.dataset.part === "strength") nv.setOpacity(1, value);
      if (target.dataset.part === "cut") nv.setClipPlane([value < 0.01 ? 2 : 0.5 - value, nv.scene.renderAzimuth + 180, 0]);
    });
  });
  root.addEventListener("click", ({ target }) => {
    const { turn, all } = target.dataset;
    if (turn) panes.forEach(({ nv }) => nv.setRenderAzimuthElevation(...turn.split(",").map(Number)));
    if (all) {
      root.querySelectorAll("[data-structure]").forEach((box) => { box.checked = all === "on"; });
      toggle();
    }
  });
  document.addEventListener("click", ({ target }) => {
    const { open } = target.dataset || {};
    if (open === undefined) return;
    root.scrollIntoView({ behavior: "smooth" });
    load(open);
  });

  (async () => {
    if (window.innerWidth > 800) {
      chosen.show = "both";
      root.querySelector("input[value=both]").checked = true;
    }
    const probe = document.createElement("canvas").getContext("webgl2");
    if (!probe) {
      root.classList.add("unable");
      say("This browser offers no WebGL 2, so there is nothing to turn here. The pictures below show every case in three planes.");
      return;
    }
    probe.getExtension("WEBGL_lose_context")?.loseContext();
    await needPane(0);
    if (chosen.show === "both") await needPane(1);
    await load(find("case").value);
  })();
})();
