/* camera.js: which part of a plane is in sight, and which place in it a pixel shows.
 *
 * Data coordinates have y upwards; pixels are CSS pixels from the upper left, y downwards.
 */

const MARGIN = 28; // CSS pixels around all points
const WIDEST = 0.4; // of the scale at which everything is in sight
const LEAST_DEPTH = 400; // how far one can zoom in, times that scale

export class Camera {
  constructor() {
    this.size = [0, 0];
    this.view = null; // {x, y: what is in the middle, scale: CSS pixels per unit}
    this.fitted = 1; // the scale at which everything is in sight
    this.deepest = LEAST_DEPTH;
  }

  /** Is everything in sight, as `fit` left it? */
  get isFitted() {
    return this.view?.scale === this.fitted;
  }

  /** How many times closer than with everything in sight. */
  get depth() {
    return this.view.scale / this.fitted;
  }

  /** What shows a box [x0, y0, x1, y1] whole, beside what covers `left` and `top` pixels. */
  around([x0, y0, x1, y1], [left, top]) {
    const [width, height] = this.size;
    const across = (width - left - 2 * MARGIN) / Math.max(x1 - x0, 1e-6);
    const upright = (height - top - 3 * MARGIN) / Math.max(y1 - y0, 1e-6); // the count is at the foot
    const scale = Math.max(Math.min(across, upright), 1e-6);
    return { x: (x0 + x1) / 2 - left / 2 / scale, y: (y0 + y1) / 2 + (top - MARGIN) / 2 / scale, scale };
  }

  /** Show `view`, all of it, and allow to come as close as `count` points need. */
  fit(view, count) {
    this.view = { ...view };
    this.fitted = view.scale;
    this.deepest = Math.max(LEAST_DEPTH, 4 * Math.sqrt(count));
  }

  zoom(factor, px = this.size[0] / 2, py = this.size[1] / 2) {
    const [x, y] = this.toData(px, py);
    this.view.scale = Math.min(this.fitted * this.deepest, Math.max(this.fitted * WIDEST, this.view.scale * factor));
    const [movedX, movedY] = this.toData(px, py);
    this.view.x += x - movedX;
    this.view.y += y - movedY;
  }

  move(dx, dy) {
    this.view.x -= dx / this.view.scale;
    this.view.y += dy / this.view.scale;
  }

  toData(px, py) {
    const { x, y, scale } = this.view;
    return [x + (px - this.size[0] / 2) / scale, y - (py - this.size[1] / 2) / scale];
  }

  toPixel(x, y) {
    const view = this.view;
    return [(x - view.x) * view.scale + this.size[0] / 2, (view.y - y) * view.scale + this.size[1] / 2];
  }

  /** What is in sight, [x0, y0, x1, y1], and `beyond` pixels around it. */
  box(beyond = 0) {
    const [width, height] = this.size;
    const [[x0, y1], [x1, y0]] = [this.toData(-beyond, -beyond), this.toData(width + beyond, height + beyond)];
    return [x0, y0, x1, y1];
  }
}
