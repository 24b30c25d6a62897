"use strict";
// A volume in NiiVue: grey image, heat over it, crosshair on the hottest place.
(async () => {
  const { data, byId, bytes, colours } = study;
  const readout = byId("readout");
  const nv = new niivue.Niivue({
    backColor: [0, 0, 0, 1],
    crosshairColor: [0.3, 0.85, 0.95, 0.9],
    crosshairWidth: 1,
    crosshairWidthUnit: "mm",
    dragAndDropEnabled: false,
    fontColor: [0.75, 0.8, 0.85, 1],
    isCornerOrientationText: false,
    isRadiologicalConvention: true,
    loadingText: "",
    logLevel: "error",
    multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID,
    multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
    scrollRequiresFocus: true,
    sliceType: niivue.SLICE_TYPE.AXIAL,
    show3Dcrosshair: true,
    showAllOrientationMarkers: true,
    tileMargin: 4,
  });
  study.viewer = nv; // what tests ask

  // Slices of a picture in which they lie beside each other, as the bytes of a NIfTI file
  async function unpackImage(image) {
    const [x, y, z] = image.shape;
    const file = new Uint8Array(352 + x * y * z);
    file.set(bytes(image.header));
    if (image.webp === null) return file.buffer;
    const picture = new Image();
    picture.src = `data:image/webp;base64,${image.webp}`;
    await picture.decode();
    const canvas = document.createElement("canvas");
    canvas.width = x;
    canvas.height = y;
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    let sum = 0;
    for (let k = 0; k < z; k++) {
      const across = (k % image.columns) * x;
      const down = Math.floor(k / image.columns) * y;
      pen.drawImage(picture, across, down, x, y, 0, 0, x, y);
      const levels = pen.getImageData(0, 0, x, y).data;
      for (let n = 0, to = 352 + k * x * y; n < x * y; n++) sum += file[to + n] = levels[4 * n];
    }
    if (Math.abs(sum / (x * y * z) - image.mean) > 4) {
      throw new Error("this browser changes pixels that a page reads, to protect against tracking. " +
        "Allow it for this page, or use another browser");
    }
    return file.buffer;
  }

  function colourMap() {
    const channel = (n) => Array.from({ length: 256 }, (_, k) => colours[3 * k + n]);
    return { R: channel(0), G: channel(1), B: channel(2), A: [0, ...Array(255).fill(255)], I: [...Array(256).keys()] };
  }

  function goToPlace(place) {
    nv.scene.crosshairPos = place;
    nv.createOnLocationChange();
    nv.drawScene();
  }

  const side = (mm, pair) => `${pair[mm < 0 ? 1 : 0]} ${Math.abs(mm).toFixed(1)}`;

  function tell(location) {
    const [x, y, z] = nv.frac2mm(nv.scene.crosshairPos, 0, true);
    const heat = location.values[1]?.value ?? 0;
    const most = heat >= data.heat.limit ? "at least " : "";
    const strong = document.createElement("strong");
    strong.textContent = `Heat ${most}${heat.toFixed(2)} × threshold`;
    readout.replaceChildren(strong, ` at ${side(x, "RL")}, ${side(y, "AP")}, ${side(z, "SI")} mm`);
    study.atSlice(nv.scene.crosshairPos[data.axis]);
  }

  try {
    await nv.attachTo("viewer");
    if (!nv.gl) throw new Error("this browser has no WebGL 2");
    nv.addColormap("heat", colourMap());
    const image = await niivue.NVImage.new(await unpackImage(data.image), "image.nii", "gray", 1, null, 0, 255);
    const heat = await niivue.NVImage.loadFromBase64({
      base64: data.heat.nifti, name: "heat.nii.gz", colormap: "heat", cal_min: 1, cal_max: data.end,
    });
    nv.addVolume(image);
    nv.addVolume(heat);
    nv.onLocationChange = tell;
    study.show = (low, high, opacity) => {
      heat.cal_min = low;
      heat.cal_max = high;
      nv.setOpacity(1, opacity);
    };
    study.goTo = (place) => {
      const position = [...nv.scene.crosshairPos];
      position[data.axis] = place;
      goToPlace(position);
    };
    study.update();
    goToPlace(data.hottest ?? [0.5, 0.5, 0.5]);
    nv.setSliceType(niivue.SLICE_TYPE.MULTIPLANAR); // last: without a GPU, 3-D takes long to draw
    byId("to-hottest").addEventListener("click", () => goToPlace(data.hottest ?? [0.5, 0.5, 0.5]));
    const views = document.querySelectorAll("[data-view]");
    for (const button of views) {
      button.addEventListener("click", () => {
        for (const other of views) other.setAttribute("aria-pressed", other === button);
        nv.setSliceType(Number(button.dataset.view));
      });
    }
    study.ready = true;
  } catch (error) {
    readout.textContent = `The viewer cannot start: ${error.message}. The slices below show the heat.`;
    study.failed = error.message;
  }
})();
