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

/** Thin lines from one place to others, and a ring around each of those. */
export function rays(pen, middle, ends, radius, color) {
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
  for (const end of ends) ring(pen, end, radius, 1.5, color);
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
