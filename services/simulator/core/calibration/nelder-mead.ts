/** A minimum found by `nelderMead`. */
export interface Minimum {
  readonly at: readonly number[];
  readonly value: number;
  readonly evaluations: number;
}

/**
 * Minimises a function of a few variables without derivatives (Nelder and Mead 1965, standard coefficients).
 * Deterministic. `steps` gives the size of the first simplex along each axis. Ends after `evaluationsMax`
 * evaluations or when the simplex's values agree to `tolerance`.
 */
export function nelderMead(
  f: (x: readonly number[]) => number,
  options: {
    start: readonly number[];
    steps: readonly number[];
    evaluationsMax: number;
    tolerance: number;
  },
): Minimum {
  const { start, evaluationsMax, tolerance } = options;
  const width = start.length;
  let evaluations = 0;
  const vertex = (x: readonly number[]): Vertex => {
    evaluations++;
    return { x, value: f(x) };
  };
  const simplex = [vertex(start)];
  for (let k = 0; k < width; k++) {
    simplex.push(vertex(start.map((v, j) => (j === k ? v + (options.steps[k] as number) : v))));
  }
  const order = (): void => {
    simplex.sort((a, b) => a.value - b.value);
  };
  order();
  while (evaluations < evaluationsMax) {
    const best = simplex[0] as Vertex;
    const worst = simplex[width] as Vertex;
    const second = simplex[width - 1] as Vertex;
    if (worst.value - best.value < tolerance) break;
    const centre = start.map(
      (_, k) => simplex.slice(0, width).reduce((sum, v) => sum + (v.x[k] as number), 0) / width,
    );
    const along = (t: number): Vertex =>
      vertex(centre.map((c, k) => c + t * ((worst.x[k] as number) - c)));
    const reflected = along(-1);
    if (reflected.value < best.value) {
      const expanded = along(-2);
      simplex[width] = expanded.value < reflected.value ? expanded : reflected;
    } else if (reflected.value < second.value) {
      simplex[width] = reflected;
    } else {
      const contracted = along(reflected.value < worst.value ? -0.5 : 0.5);
      if (contracted.value < Math.min(reflected.value, worst.value)) {
        simplex[width] = contracted;
      } else {
        for (let i = 1; i <= width; i++) {
          const { x } = simplex[i] as Vertex;
          simplex[i] = vertex(x.map((v, k) => ((best.x[k] as number) + v) / 2));
        }
      }
    }
    order();
  }
  const best = simplex[0] as Vertex;
  return { at: best.x, value: best.value, evaluations };
}

interface Vertex {
  readonly x: readonly number[];
  readonly value: number;
}
