// Who joined whom: groups of patches that are one token, by number; -1 where a token was dropped.

const BLENDED = 0.5; // how much the mean colour of merged patches covers of the image

// The groups behind a block; they are kept where they change. Two bytes a patch where one is too few.
function groupsBehind(image, index, block) {
  const text = image.joined.slice(0, index + 1).reverse().find(Boolean);
  if (!text) return null;
  const bytes = bytesOf(text), patches = block.rows * block.columns, wide = bytes.length > patches;
  return Int32Array.from({ length: patches }, (_, place) => {
    const group = wide ? bytes[2 * place] + 256 * bytes[2 * place + 1] : bytes[place];
    return group === (wide ? 65535 : 255) ? -1 : group;
  });
}

function membersOf(groups, token) {
  return [...groups.keys()].filter((place) => groups[place] === groups[token]);
}

// The mean colour of every group that has several patches, by number.
function meanColours(picture, block, groups) {
  const canvas = element("canvas", { width: picture.naturalWidth, height: picture.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const { data, width, height } = context.getImageData(0, 0, canvas.width, canvas.height);
  const sums = new Map();
  groups.forEach((group, place) => {
    const [left, top, wide, high] = cellOf(place, block, width, height);
    const sum = sums.get(group) ?? [0, 0, 0, 0, 0];
    sums.set(group, sum);
    sum[4] += 1;
    for (let row = top; row < top + high; row += 1) {
      for (let at = 4 * (row * width + left); at < 4 * (row * width + left + wide); at += 4) {
        for (const part of [0, 1, 2]) sum[part] += data[at + part];
        sum[3] += 1;
      }
    }
  });
  sums.delete(-1);
  return new Map([...sums].filter(([, sum]) => sum[4] > 1).map(([group, sum]) =>
    [group, `rgba(${sum.slice(0, 3).map((part) => Math.round(part / Math.max(1, sum[3])))}, ${BLENDED})`]));
}

// Lines along the sides of patches, where the patch and its neighbour (null beyond the image) are parted.
function traceBorders(context, block, parted) {
  const { rows, columns } = block, { width, height } = context.canvas;
  context.beginPath();
  const line = (x, y, toX, toY) => { context.moveTo(x, y); context.lineTo(toX, toY); };
  for (let place = 0; place < rows * columns; place += 1) {
    const [left, top, wide, high] = cellOf(place, block, width, height), column = place % columns;
    const right = column + 1 < columns ? place + 1 : null, below = place + columns < rows * columns ? place + columns : null;
    if (parted(place, right)) line(left + wide, top, left + wide, top + high);
    if (parted(place, below)) line(left, top + high, left + wide, top + high);
    if (column === 0 && parted(place, null)) line(left, top, left, top + high);
    if (place < columns && parted(place, null)) line(left, top, left + wide, top);
  }
}

// White with a dark edge is seen on light and on dark.
function strokeOnAnything(context, edge, thickness) {
  context.lineCap = "square";
  for (const [colour, lineWidth] of [["rgba(0, 0, 0, .55)", edge], ["#ffffff", thickness]]) {
    context.strokeStyle = colour;
    context.lineWidth = lineWidth;
    context.stroke();
  }
}

// All groups over the image; with a token that is pointed at, those of others are dimmed.
function drawGroups(context, block, groups, means, token) {
  const { width, height } = context.canvas, dim = `rgba(${colourOf("--dim")}, 0.55)`;
  const chosen = token === null || groups[token] < 0 ? null : groups[token];
  const fill = (place, colour) => { context.fillStyle = colour; context.fillRect(...cellOf(place, block, width, height)); };
  groups.forEach((group, place) => {
    if (means.has(group)) fill(place, means.get(group));
    if (chosen !== null && group !== chosen) fill(place, dim);
  });
  traceBorders(context, block, (place, other) => other !== null && groups[place] !== groups[other]);
  strokeOnAnything(context, 2.5, 1.25);
}

// The outline of the group that a patch is in.
function drawGroup(context, block, groups, token) {
  if (groups[token] < 0) return;
  const inside = (place) => place !== null && groups[place] === groups[token];
  traceBorders(context, block, (place, other) => inside(place) !== inside(other));
  strokeOnAnything(context, 6, 3);
}

function groupInWords(groups, before, token) {
  const size = membersOf(groups, token).length, was = before ? membersOf(before, token).length : 1;
  const words = size === 1 ? "a token of its own" : `one of ${size} patches in a token`;
  return was === size ? words : `${words}, ${was} before`;
}

function largestGroup(groups) {
  const sizes = new Map();
  for (const group of groups) if (group >= 0) sizes.set(group, (sizes.get(group) ?? 0) + 1);
  return `. The largest stands for ${Math.max(...sizes.values())} patches.`;
}
