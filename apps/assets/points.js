/* points.js: drawing up to a million points with WebGL2; no events, no page elements.
 *
 * On the GPU points lie in a random order that is always the same. So nothing that stands late in a
 * gallery covers what stands early, and the first FEW of them are a fair sample of all, which is
 * what is drawn while the map moves.
 */

import { shuffled } from "./geometry.js";

export const FEW = 100000;
const FAR = 1e30; // where points without coordinates are put: out of sight

const VERTEX = `#version 300 es
in float a_x; in float a_y; in float a_from_x; in float a_from_y; in uint a_code; in uint a_state;
uniform vec2 u_center, u_scale; uniform float u_size, u_way; uniform int u_pass, u_focus;
uniform sampler2D u_palette; uniform vec4 u_faint; uniform float u_alpha;
out vec4 v_color; out float v_size;
void main() {
  bool faint = a_state == 1u || (u_focus >= 0 && int(a_code) != u_focus);
  bool here = u_pass == 2 || (u_pass == 0) == faint;
  vec2 place = u_way < 1.0 ? mix(vec2(a_from_x, a_from_y), vec2(a_x, a_y), u_way) : vec2(a_x, a_y);
  gl_Position = here ? vec4((place - u_center) * u_scale, 0.0, 1.0) : vec4(9.0, 9.0, 9.0, 1.0);
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
    this.order = this.placeOf = new Uint32Array(0);
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
    gl.bindAttribLocation(program, 0, "a_x"); // the first attribute has to be an array
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost())
      throw new Error(gl.getProgramInfoLog(program));
    this.program = program;
    this.uniform = new Proxy({}, { get: (known, name) => (known[name] ??= gl.getUniformLocation(program, name)) });
    const names = ["x", "y", "from_x", "from_y", "code", "state", "lit"];
    this.buffers = Object.fromEntries(names.map((name) => [name, gl.createBuffer()]));
    this.texture = gl.createTexture();
    this.count = this.litCount = 0;
  }

  /** Give every row a value of an attribute. */
  fill(name, values) {
    const { order } = this;
    const mixed = new values.constructor(order.length);
    for (let i = 0; i < order.length; i++) mixed[i] = values[order[i]];
    this.send(name, mixed);
  }

  /** Give all rows the value 0, without an array. */
  clear(name) {
    const gl = this.gl;
    const place = gl.getAttribLocation(this.program, `a_${name}`);
    gl.disableVertexAttribArray(place);
    if (name === "code" || name === "state") gl.vertexAttribI4ui(place, 0, 0, 0, 0);
  }

  send(name, array) {
    const gl = this.gl;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
    gl.bufferData(gl.ARRAY_BUFFER, array, gl.DYNAMIC_DRAW);
    const place = gl.getAttribLocation(this.program, `a_${name}`);
    gl.enableVertexAttribArray(place);
    if (array instanceof Float32Array) gl.vertexAttribPointer(place, 1, gl.FLOAT, false, 0, 0);
    else gl.vertexAttribIPointer(place, 1, array instanceof Uint16Array ? gl.UNSIGNED_SHORT : gl.UNSIGNED_BYTE, 0, 0);
  }

  /** Where the points are. */
  points(x, y) {
    if (this.order.length !== x.length) this.reorder(x.length);
    this.coordinates("x", "y", x, y);
    this.count = x.length;
    this.arrive();
  }

  reorder(n) {
    this.order = shuffled(n);
    this.placeOf = new Uint32Array(n);
    for (let i = 0; i < n; i++) this.placeOf[this.order[i]] = i;
    for (const name of ["code", "state"]) this.clear(name); // until told: an array may be too short
  }

  coordinates(nameX, nameY, x, y) {
    const { order } = this, n = order.length;
    const [mixedX, mixedY] = [new Float32Array(n), new Float32Array(n)];
    for (let i = 0; i < n; i++) {
      const px = x[order[i]], py = y[order[i]];
      const drawable = px - px === 0 && py - py === 0; // neither NaN nor infinite
      mixedX[i] = drawable ? px : FAR;
      mixedY[i] = drawable ? py : FAR;
    }
    this.send(nameX, mixedX);
    this.send(nameY, mixedY);
  }

  /** Where the points come from, on a way to where they are. */
  depart(x, y) {
    this.coordinates("from_x", "from_y", x, y);
  }

  /** The way is over. */
  arrive() {
    for (const name of ["from_x", "from_y"]) this.clear(name);
  }

  lit(rows) {
    const gl = this.gl;
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers.lit);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, Uint32Array.from(rows, (row) => this.placeOf[row]), gl.DYNAMIC_DRAW);
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

  /** @param few only the FEW that stand for all; @param way from 0, where they come from, to 1 */
  draw({ center, scale, size, alpha, focus, surface, faint, anyFaint, few, way = 1 }) {
    const gl = this.gl, u = this.uniform;
    gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!this.count) return 0;
    gl.useProgram(this.program);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.uniform2f(u.u_center, ...center);
    gl.uniform2f(u.u_scale, ...scale);
    gl.uniform1i(u.u_focus, focus);
    gl.uniform1f(u.u_alpha, alpha);
    gl.uniform1f(u.u_way, way);
    gl.uniform3f(u.u_surface, ...surface.map((v) => v / 255));
    gl.uniform4f(u.u_faint, ...faint.map((v) => v / 255), this.count > 50000 ? 0.25 : 0.6);
    const pass = (number, factor) => {
      gl.uniform1i(u.u_pass, number);
      gl.uniform1f(u.u_size, size * factor);
    };
    const count = few ? Math.min(FEW, this.count) : this.count;
    if (anyFaint || focus >= 0) { pass(0, 1); gl.drawArrays(gl.POINTS, 0, count); }
    pass(1, 1);
    gl.drawArrays(gl.POINTS, 0, count);
    if (this.litCount) { pass(2, 1.7); gl.drawElements(gl.POINTS, this.litCount, gl.UNSIGNED_INT, 0); }
    return count;
  }
}

/** "#rrggbb" or "rgb(r, g, b)" as [r, g, b] in 0..255. */
export function rgb(text) {
  if (text.startsWith("#")) return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
  return (text.match(/[\d.]+/g) ?? [0, 0, 0]).slice(0, 3).map(Number);
}
