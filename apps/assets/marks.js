/* marks.js: what is drawn over the points of a map: rings, lines to neighbors, a star, a lasso.
 *
 * `pen` is a 2D canvas context; all places are [x, y] in CSS pixels.
 */

export function ring(pen, [x, y], radius, width, color) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.lineWidth = width;
  pen.strokeStyle = color;
  pen.stroke();
}

/** A frame around a picture [left, top, width, height]. */
export function frame(pen, [left, top, width, height], line, color) {
  pen.beginPath();
  pen.roundRect(left - line / 2, top - line / 2, width + line, height + line, 6);
  pen.lineWidth = line;
  pen.strokeStyle = color;
  pen.stroke();
}

/** Thin lines from one place to others. */
export function rays(pen, middle, ends, color) {
  pen.strokeStyle = color;
  pen.lineWidth = 1;
  pen.globalAlpha = 0.45;
  for (const end of ends) {
    pen.beginPath();
    pen.moveTo(...middle);
    pen.lineTo(...end);
    pen.stroke();
  }
  pen.globalAlpha = 1;
}

/** A faint arrow from where a point was. */
export function arrow(pen, [x0, y0], [x1, y1], color) {
  const angle = Math.atan2(y1 - y0, x1 - x0);
  const length = Math.hypot(x1 - x0, y1 - y0);
  if (length < 2) return;
  const head = Math.min(8, 0.5 * length);
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  for (const turn of [-0.45, 0.45]) {
    pen.moveTo(x1, y1);
    pen.lineTo(x1 - head * Math.cos(angle + turn), y1 - head * Math.sin(angle + turn));
  }
  pen.lineWidth = 1.2;
  pen.strokeStyle = color;
  pen.globalAlpha = 0.5;
  pen.stroke();
  pen.globalAlpha = 1;
}

/** Where a new image would lie: a star, so that it is not taken for a point of the gallery. */
export function star(pen, [x, y], color, rim) {
  pen.beginPath();
  for (let i = 0; i < 10; i++) {
    const [radius, angle] = [i % 2 ? 5 : 12, (Math.PI * (i - 2.5)) / 5];
    pen.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle));
  }
  pen.closePath();
  pen.fillStyle = color;
  pen.fill();
  pen.lineWidth = 2;
  pen.strokeStyle = rim;
  pen.stroke();
}

/** A closed, dashed outline, lightly filled. */
export function region(pen, outline, color) {
  pen.beginPath();
  outline.forEach((point) => pen.lineTo(...point));
  pen.closePath();
  pen.fillStyle = pen.strokeStyle = color;
  pen.globalAlpha = 0.1;
  pen.fill();
  pen.globalAlpha = 0.9;
  pen.lineWidth = 1.5;
  pen.setLineDash([5, 4]);
  pen.stroke();
  pen.setLineDash([]);
  pen.globalAlpha = 1;
}
