/* points.js: the geometry and the drawing of a map of points; no events, no page elements.
 *
 * `PointLayer` draws up to a million points with WebGL2; `Cells` finds the nearest one without
 * looking at all; `inPolygon` is the even-odd rule that dino_core/gallery/selection.py uses too.
 */

/* ---------------------------------------------------------------- geometry */

/** Even-odd rule: is (x, y) inside the polygon [[x, y], ...]? */
export function inPolygon(x, y, polygon) {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [xi, yi] = polygon[i], [xj, yj] = polygon[j];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}

/** The smallest box around finite points: [x0, y0, x1, y1]. */
export function bounds(x, y) {
  let x0 = Infinity, y0 = Infinity, x1 = -Infinity, y1 = -Infinity;
  for (let i = 0; i < x.length; i++) {
    if (!Number.isFinite(x[i]) || !Number.isFinite(y[i])) continue;
    if (x[i] < x0) x0 = x[i];
    if (x[i] > x1) x1 = x[i];
    if (y[i] < y0) y0 = y[i];
    if (y[i] > y1) y1 = y[i];
  }
  return x0 <= x1 ? [x0, y0, x1, y1] : [0, 0, 1, 1];
}

/** Points sorted into square cells, so that the nearest one is found without looking at all. */
export class Cells {
  constructor(x, y) {
    this.x = x;
    this.y = y;
    const [x0, y0, x1, y1] = bounds(x, y);
    this.side = Math.max(x1 - x0, y1 - y0, 1e-9) / Math.max(4, Math.min(512, Math.sqrt(x.length / 2)));
    [this.x0, this.y0] = [x0, y0];
    this.columns = Math.floor((x1 - x0) / this.side) + 1;
    this.rows = Math.floor((y1 - y0) / this.side) + 1;
    this.start = new Uint32Array(this.columns * this.rows + 1);
    const cell = new Int32Array(x.length);
    for (let i = 0; i < x.length; i++) {
      cell[i] = Number.isFinite(x[i]) && Number.isFinite(y[i]) ? this.row(y[i]) * this.columns + this.column(x[i]) : -1;
      if (cell[i] >= 0) this.start[cell[i] + 1]++;
    }
    for (let c = 0; c < this.start.length - 1; c++) this.start[c + 1] += this.start[c];
    this.order = new Uint32Array(x.length);
    const next = this.start.slice();
    for (let i = 0; i < x.length; i++) if (cell[i] >= 0) this.order[next[cell[i]]++] = i;
  }

  column(x) { return Math.min(this.columns - 1, Math.max(0, Math.floor((x - this.x0) / this.side))); }
  row(y) { return Math.min(this.rows - 1, Math.max(0, Math.floor((y - this.y0) / this.side))); }

  /** The nearest point within `radius` (data units) for which `counts(i)`, or -1. */
  nearest(x, y, radius, counts) {
    let best = -1, bestSquare = radius * radius;
    for (let r = this.row(y - radius); r <= this.row(y + radius); r++)
      for (let c = this.column(x - radius); c <= this.column(x + radius); c++)
        for (let k = this.start[r * this.columns + c]; k < this.start[r * this.columns + c + 1]; k++) {
          const i = this.order[k];
          const square = (this.x[i] - x) ** 2 + (this.y[i] - y) ** 2;
          if (square < bestSquare && counts(i)) [best, bestSquare] = [i, square];
        }
    return best;
  }
}

/* ---------------------------------------------------------------- drawing */

const VERTEX = `#version 300 es
in float a_x; in float a_y; in uint a_code; in uint a_state;
uniform vec2 u_center, u_scale; uniform float u_size; uniform int u_pass, u_focus;
uniform sampler2D u_palette; uniform vec4 u_faint; uniform float u_alpha;
out vec4 v_color; out float v_size;
void main() {
  bool faint = a_state == 1u || (u_focus >= 0 && int(a_code) != u_focus);
  bool here = u_pass == 2 || (u_pass == 0) == faint;
  gl_Position = here ? vec4((vec2(a_x, a_y) - u_center) * u_scale, 0.0, 1.0) : vec4(9.0, 9.0, 9.0, 1.0);
  v_size = u_pass == 0 ? max(u_size * 0.8, 1.0) : u_size;
  gl_PointSize = v_size + 1.0;
  vec4 color = texelFetch(u_palette, ivec2(int(a_code) & 255, int(a_code) >> 8), 0);
  v_color = u_pass == 0 ? u_faint : vec4(color.rgb, u_pass == 2 ? 1.0 : u_alpha);
}`;

const FRAGMENT = `#version 300 es
precision highp float; precision highp int;
in vec4 v_color; in float v_size; uniform vec3 u_surface; uniform int u_pass; out vec4 color;
void main() {
  float radius = v_size * 0.5;
  float d = length(gl_PointCoord - 0.5) * (v_size + 1.0);
  float cover = clamp(radius - d + 0.5, 0.0, 1.0);
  float rim = u_pass > 0 && v_size > 7.0 ? clamp(d - radius + 1.7, 0.0, 1.0) : 0.0;
  float alpha = v_color.a * cover;
  color = vec4(mix(v_color.rgb, u_surface, rim * 0.75) * alpha, alpha);
}`;

/** The points on the GPU: three passes (faint, plain, lit) of one program. */
export class PointLayer {
  constructor(canvas) {
    this.gl = canvas.getContext("webgl2", { antialias: false, alpha: true, premultipliedAlpha: true });
    if (!this.gl) throw new Error("no WebGL2");
    this.build();
  }

  build() {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost())
      throw new Error(gl.getProgramInfoLog(program));
    this.program = program;
    this.uniform = new Proxy({}, { get: (known, name) => (known[name] ??= gl.getUniformLocation(program, name)) });
    this.buffers = Object.fromEntries(["x", "y", "code", "state", "lit"].map((name) => [name, gl.createBuffer()]));
    this.texture = gl.createTexture();
    this.count = this.litCount = 0;
  }

  fill(name, array) {
    const gl = this.gl;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
    gl.bufferData(gl.ARRAY_BUFFER, array, gl.DYNAMIC_DRAW);
    const place = gl.getAttribLocation(this.program, `a_${name}`);
    gl.enableVertexAttribArray(place);
    if (array instanceof Float32Array) gl.vertexAttribPointer(place, 1, gl.FLOAT, false, 0, 0);
    else gl.vertexAttribIPointer(place, 1, array instanceof Uint16Array ? gl.UNSIGNED_SHORT : gl.UNSIGNED_BYTE, 0, 0);
  }

  points(x, y) {
    const drawable = (values) => values.map((value, i) => (Number.isFinite(x[i]) && Number.isFinite(y[i]) ? value : 3e37));
    this.fill("x", drawable(x));
    this.fill("y", drawable(y));
    this.count = x.length;
  }

  lit(rows) {
    const gl = this.gl;
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers.lit);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, Uint32Array.from(rows), gl.DYNAMIC_DRAW);
    this.litCount = rows.length;
  }

  palette(colors) {
    const gl = this.gl;
    const height = Math.max(1, Math.ceil(colors.length / 256));
    const texels = new Uint8Array(256 * height * 4).fill(128);
    colors.forEach((color, i) => texels.set([...rgb(color), 255], 4 * i));
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, 256, height, 0, gl.RGBA, gl.UNSIGNED_BYTE, texels);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
  }

  draw({ center, scale, size, alpha, focus, surface, faint, anyFaint }) {
    const gl = this.gl, u = this.uniform;
    gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!this.count) return;
    gl.useProgram(this.program);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.uniform2f(u.u_center, ...center);
    gl.uniform2f(u.u_scale, ...scale);
    gl.uniform1i(u.u_focus, focus);
    gl.uniform1f(u.u_alpha, alpha);
    gl.uniform3f(u.u_surface, ...surface.map((v) => v / 255));
    gl.uniform4f(u.u_faint, ...faint.map((v) => v / 255), this.count > 50000 ? 0.25 : 0.6);
    const pass = (number, factor) => {
      gl.uniform1i(u.u_pass, number);
      gl.uniform1f(u.u_size, size * factor);
    };
    if (anyFaint || focus >= 0) { pass(0, 1); gl.drawArrays(gl.POINTS, 0, this.count); }
    pass(1, 1);
    gl.drawArrays(gl.POINTS, 0, this.count);
    if (this.litCount) { pass(2, 1.7); gl.drawElements(gl.POINTS, this.litCount, gl.UNSIGNED_INT, 0); }
  }
}

/** "#rrggbb" or "rgb(r, g, b)" as [r, g, b] in 0..255. */
export function rgb(text) {
  if (text.startsWith("#")) return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
  return (text.match(/[\d.]+/g) ?? [0, 0, 0]).slice(0, 3).map(Number);
}
