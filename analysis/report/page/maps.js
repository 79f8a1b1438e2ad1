const DROPPED = 255;
const LEVELS = 254;

// A map as it was measured: NaN where a token had been dropped before.
function valuesOf(map) {
  return Float64Array.from(bytesOf(map.data), (level) =>
    level === DROPPED ? NaN : map.low + ((map.high - map.low) * level) / LEVELS);
}

// Which tokens a mask names: a bit a token, the highest first.
function maskOf(text, tokens) {
  const bytes = bytesOf(text);
  return Uint8Array.from({ length: tokens }, (_, token) => (bytes[token >> 3] >> (7 - (token & 7))) & 1);
}

// The pixels of a token; every pixel belongs to one.
function cellOf(token, block, width, height) {
  const row = Math.floor(token / block.columns), column = token % block.columns;
  const left = Math.round((column * width) / block.columns), top = Math.round((row * height) / block.rows);
  const right = Math.round(((column + 1) * width) / block.columns);
  const bottom = Math.round(((row + 1) * height) / block.rows);
  return [left, top, right - left, bottom - top];
}

function colourAt(colours, value, range) {
  const share = range.high > range.low ? (value - range.low) / (range.high - range.low) : 0;
  const index = 3 * Math.round(255 * Math.min(1, Math.max(0, share)));
  return `rgb(${colours[index]},${colours[index + 1]},${colours[index + 2]})`;
}

function drawImage(context, picture) {
  const { width, height } = context.canvas;
  context.imageSmoothingEnabled = picture.naturalWidth > 128; // small canvases stay sharp
  context.clearRect(0, 0, width, height);
  context.drawImage(picture, 0, 0, width, height);
}

function drawHatch(context, left, top, width, height) {
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
  context.fillStyle = colourOf("--blank");
  context.fillRect(left, top, width, height);
  context.strokeStyle = colourOf("--hatch");
  context.lineWidth = 1.5;
  context.beginPath();
  for (let at = Math.floor((left - top - height) / 8) * 8; at < left + width - top; at += 8) {
    context.moveTo(at + top, top);
    context.lineTo(at + top + height, top + height);
  }
  context.stroke();
  context.restore();
}

function drawMap(context, picture, block, values, range, colours, over) {
  const { width, height } = context.canvas;
  drawImage(context, picture);
  values.forEach((value, token) => {
    const cell = cellOf(token, block, width, height);
    if (Number.isNaN(value)) return drawHatch(context, ...cell);
    context.globalAlpha = over ? 0.6 : 1;
    context.fillStyle = colourAt(colours, value, range);
    context.fillRect(...cell);
    context.globalAlpha = 1;
  });
}

// The image with what was dropped before dimmed away, and what goes behind this block marked.
function drawKept(context, picture, block, before, kept) {
  const { width, height } = context.canvas;
  drawImage(context, picture);
  if (!kept) return;
  kept.forEach((stays, token) => {
    if (stays) return;
    const [left, top, wide, high] = cellOf(token, block, width, height);
    const now = !Number.isNaN(before[token]);
    if (!now) {
      context.globalAlpha = 0.85;
      drawHatch(context, left, top, wide, high);
      context.globalAlpha = 1;
      return;
    }
    context.fillStyle = `rgba(${colourOf("--dim")}, 0.55)`;
    context.fillRect(left, top, wide, high);
    context.strokeStyle = colourOf("--now");
    context.lineWidth = 2;
    context.strokeRect(left + 2, top + 2, wide - 4, high - 4);
  });
}

function drawAbsent(context) {
  const { width, height } = context.canvas;
  drawHatch(context, 0, 0, width, height);
}

function drawCursor(context, block, token) {
  const [left, top, wide, high] = cellOf(token, block, context.canvas.width, context.canvas.height);
  context.lineWidth = 3;
  context.strokeStyle = "#000000";
  context.strokeRect(left, top, wide, high);
  context.lineWidth = 1.5;
  context.strokeStyle = "#ffffff";
  context.strokeRect(left, top, wide, high);
}

function drawScale(canvas, colours) {
  const context = canvas.getContext("2d");
  for (let level = 0; level < 256; level += 1) {
    context.fillStyle = colourAt(colours, level, { low: 0, high: 255 });
    context.fillRect(level, 0, 1, canvas.height);
  }
}
