# syntax=docker/dockerfile:1
# The page, from the root of the tree: docker build -f deploy/page.Dockerfile -t ditcast-page .
FROM node:20-bookworm-slim AS build
WORKDIR /src
COPY clients/typescript clients/typescript
COPY clients/web clients/web
WORKDIR /src/clients/web
RUN npm ci --ignore-scripts && npm rebuild esbuild && npm run build

# It listens on 8080 and is not root; with a read-only root file system it wants /tmp.
FROM nginxinc/nginx-unprivileged:1.28-alpine
COPY --from=build /src/clients/web/dist /usr/share/nginx/html
