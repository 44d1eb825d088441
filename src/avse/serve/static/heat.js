// Draws where a score came from over a picture: heat of a grid's cells, smoothly, or of regions' boxes.

const COLOURS = [[255, 214, 90], [250, 140, 40], [215, 20, 60]]; // from the least to the hottest, as .ramp in app.css
const FINE = 8; // pixels a cell is drawn with before the browser scales it

function colour(value) {
  const at = Math.min(Math.max(value, 0), 1) * (COLOURS.length - 1);
  const low = Math.min(Math.floor(at), COLOURS.length - 2);
  return COLOURS[low].map((from, part) => Math.round(from + (COLOURS[low + 1][part] - from) * (at - low)));
}

/** What the cells of a row add to the points between them: a cubic B-spline, which shows no edges; the ends go on. */
function weights(length, size) {
  return Array.from({ length: size }, (_, at) => {
    const place = ((at + 0.5) * length) / size - 0.5;
    const low = Math.floor(place);
    const t = place - low;
    const shares = [(1 - t) ** 3, 3 * t ** 3 - 6 * t ** 2 + 4, -3 * t ** 3 + 3 * t ** 2 + 3 * t + 1, t ** 3];
    return shares.map((share, cell) => [Math.min(Math.max(low - 1 + cell, 0), length - 1), share / 6]);
  });
}

function smooth(heat) {
  const [height, width] = [heat.length * FINE, heat[0].length * FINE];
  const mix = (row, parts) => parts.reduce((sum, [cell, share]) => sum + row[cell] * share, 0);
  const across = heat.map((row) => weights(row.length, width).map((parts) => mix(row, parts)));
  const columns = across[0].map((_, x) => across.map((row) => row[x]));
  const values = weights(heat.length, height).flatMap((parts) => columns.map((column) => mix(column, parts)));
  const top = values.reduce((most, value) => Math.max(most, value), 1e-12);
  const fine = new OffscreenCanvas(width, height);
  const context = fine.getContext("2d");
  const pixels = context.createImageData(width, height);
  values.forEach((value, at) => {
    const share = Math.max(value / top, 0);
    pixels.data.set([...colour(share), Math.round(255 * share ** 1.25)], at * 4);
  });
  context.putImageData(pixels, 0, 0);
  return fine;
}

/**
 * Draw upon `canvas`, which lies over the picture.
 * @param {object} reason what /api/explain answers
 * @param {number[][]} heat its heat, or that of one part
 * @param {number} strength opacity, 0 to 1
 */
export function draw(canvas, reason, heat, strength) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth * scale, canvas.clientHeight * scale];
  if (!width || !height) return;
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const top = Math.max(...heat.flat());
  context.clearRect(0, 0, width, height);
  if (!(top > 0)) return;
  context.globalAlpha = strength;
  if (reason.boxes) {
    context.lineWidth = 2 * scale;
    const row = heat.flat();
    for (const at of [...row.keys()].sort((a, b) => row[a] - row[b])) {
      const [x0, y0, x1, y1] = reason.boxes[at];
      const value = row[at] / top;
      if (value <= 0.02) continue;
      const box = [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height];
      const shade = (alpha) => `rgb(${colour(value).join(" ")} / ${alpha})`;
      context.fillStyle = shade(value * 0.35);
      context.strokeStyle = shade(value);
      context.fillRect(...box);
      context.strokeRect(...box);
    }
    return;
  }
  const [x0, y0, x1, y1] = reason.frame;
  const place = [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height];
  context.imageSmoothingQuality = "high";
  context.drawImage(smooth(heat), ...place);
  if (x0 > 0.001 || y0 > 0.001 || x1 < 0.999 || y1 < 0.999) {
    context.globalAlpha = 0.7;
    context.strokeStyle = "#888";
    context.setLineDash([6 * scale, 5 * scale]);
    context.strokeRect(...place);
  }
}
