"use strict";
// A picture with its heat, drawn into a canvas of the picture's own size.
(async () => {
  const { data, byId, bytes, colours } = study;
  const canvas = byId("viewer");
  const picture = new Image();
  picture.src = data.image;
  await picture.decode();
  const levels = bytes(data.heat.bytes);
  const [rows, columns] = data.heat.shape;
  const layer = document.createElement("canvas");
  layer.width = columns;
  layer.height = rows;
  let shown = [1, data.end, 0.65];

  function paint() {
    const [low, high, opacity] = shown;
    const pixels = new ImageData(columns, rows);
    levels.forEach((level, n) => {
      const heat = (level / 255) * data.heat.limit;
      if (heat < low) return;
      const k = Math.min(255, Math.round((255 * (heat - low)) / Math.max(high - low, 0.01)));
      pixels.data.set([colours[3 * k], colours[3 * k + 1], colours[3 * k + 2], 255 * opacity], 4 * n);
    });
    layer.getContext("2d").putImageData(pixels, 0, 0);
    const scale = window.devicePixelRatio || 1;
    const room = [canvas.clientWidth * scale, canvas.clientHeight * scale];
    [canvas.width, canvas.height] = room;
    const [width, height] = data.size;
    const fit = Math.min(room[0] / width, room[1] / height);
    const box = [(room[0] - width * fit) / 2, (room[1] - height * fit) / 2, width * fit, height * fit];
    const pen = canvas.getContext("2d");
    pen.imageSmoothingQuality = "high";
    pen.drawImage(picture, ...box);
    pen.drawImage(layer, ...box);
    if (data.hottest) {
      const [x, y] = [box[0] + data.hottest[0] * box[2], box[1] + data.hottest[1] * box[3]];
      pen.strokeStyle = "#4dd9f2";
      pen.lineWidth = 1.5 * scale;
      pen.beginPath();
      pen.arc(x, y, 11 * scale, 0, 2 * Math.PI);
      pen.stroke();
    }
  }

  study.show = (...values) => {
    shown = values;
    paint();
  };
  study.update();
  new ResizeObserver(paint).observe(canvas);
  byId("readout").textContent = data.hottest ? "The circle is around the hottest place." : "No heat is above 0.";
  study.ready = true;
})();
