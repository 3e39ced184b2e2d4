/** Cycles and files that nothing reaches; who may import whom is in eslint.config.js. */
module.exports = {
  forbidden: [
    { name: "no-circular", severity: "error", from: {}, to: { circular: true } },
    {
      name: "no-orphans",
      severity: "error",
      from: { orphan: true, pathNot: ["\\.test\\.ts$", "/gen/", "\\.d\\.ts$", "setup/"] },
      to: {},
    },
    {
      name: "not-to-tests",
      severity: "error",
      from: { pathNot: "^test/|\\.test\\.ts$" },
      to: { path: "^test/|\\.test\\.ts$" },
    },
  ],
  options: {
    doNotFollow: { path: "node_modules" },
    exclude: { path: "services/shared/gen" },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: "tsconfig.json" },
  },
};
