import tseslint from "typescript-eslint";

const edgeOnlyProperties = [
  { object: "Date", property: "now", message: "Take the time as an argument (Clock)." },
  { object: "Math", property: "random", message: "Take a SeededRandom as an argument." },
  { object: "performance", property: "now", message: "Take the time as an argument (Clock)." },
];
const edgeOnlyGlobals = [
  "process",
  "setTimeout",
  "setInterval",
  "setImmediate",
  "fetch",
  "console",
  "Buffer",
].map((name) => ({ name, message: "Only edges and main.ts touch the outside world." }));

const services = ["router", "worker", "console", "simulator", "cli", "relay", "kvbm", "planner"];

/** Import rules of one service: its core sees no edges, npm packages or Node; nothing sees another service. */
function serviceRules(service) {
  const others = services.filter((name) => name !== service);
  const otherServices = others.map((name) => ({
    regex: `^(\\.\\./)+${name}/`,
    message: "Services talk over gRPC, never by import.",
  }));
  const allowedForSimulator = others.map((name) => ({
    regex: `^(\\.\\./)+${name}/(?!core/)`,
    message: "The simulator runs cores, never edges, of other services.",
  }));
  const foreign = service === "simulator" ? allowedForSimulator : otherServices;
  return [
    {
      files: [`services/${service}/**/*.ts`],
      ignores: ["**/*.test.ts"],
      rules: { "no-restricted-imports": ["error", { patterns: foreign }] },
    },
    {
      files: [`services/${service}/core/**/*.ts`],
      ignores: ["**/*.test.ts"],
      rules: {
        "no-restricted-imports": [
          "error",
          {
            patterns: [
              ...foreign,
              { regex: "^node:", message: "Cores do no I/O." },
              { regex: "^[^.]", message: "Cores import no packages." },
              { regex: "/edge/", message: "Cores do not import edges." },
              { regex: "/gen/", message: "Wire types stop at the edge.", allowTypeImports: true },
            ],
          },
        ],
        "no-restricted-properties": ["error", ...edgeOnlyProperties],
        "no-restricted-globals": ["error", ...edgeOnlyGlobals],
      },
    },
  ];
}

export default tseslint.config(
  {
    ignores: [
      "node_modules/",
      ".kvmesh/",
      "services/shared/gen/",
      "**/*.js",
      "**/*.mjs",
      "**/*.cjs",
      "coverage/",
    ],
  },
  ...tseslint.configs.strictTypeChecked,
  {
    languageOptions: {
      parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname },
    },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      "@typescript-eslint/switch-exhaustiveness-check": [
        "error",
        { considerDefaultExhaustiveForUnions: true },
      ],
      "@typescript-eslint/consistent-type-imports": "error",
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
      "@typescript-eslint/no-unnecessary-condition": [
        "error",
        { allowConstantLoopConditions: "only-allowed-literals" },
      ],
      "@typescript-eslint/no-confusing-void-expression": ["error", { ignoreArrowShorthand: true }],
      "no-restricted-syntax": [
        "error",
        {
          selector: "ExportAllDeclaration",
          message: "No barrels: import the file that has the thing.",
        },
      ],
    },
  },
  {
    files: ["services/shared/core/**/*.ts"],
    ignores: ["**/*.test.ts", "services/shared/core/chat-template.ts"],
    rules: {
      "no-restricted-imports": [
        "error",
        {
          patterns: [
            { regex: "^[^.]", message: "shared/core imports itself alone." },
            { regex: "/edge/|/gen/" },
          ],
        },
      ],
      "no-restricted-properties": ["error", ...edgeOnlyProperties],
      "no-restricted-globals": ["error", ...edgeOnlyGlobals],
    },
  },
  {
    files: ["services/shared/edge/**/*.ts"],
    ignores: ["**/*.test.ts"],
    rules: {
      "no-restricted-imports": [
        "error",
        {
          patterns: services.map((name) => ({
            regex: `^(\\.\\./)+${name}/`,
            message: "shared knows no service.",
          })),
        },
      ],
    },
  },
  ...services.flatMap(serviceRules),
  {
    files: ["**/*.test.ts", "test/**/*.ts"],
    rules: {
      "@typescript-eslint/no-non-null-assertion": "off",
      "@typescript-eslint/no-unsafe-assignment": "off",
      "@typescript-eslint/no-unsafe-member-access": "off",
    },
  },
);
