# docker build --build-arg VERSION=1.2.3 -t sluice .
# docker run -v sluice:/data -p 443:8443 sluice serve --matomo.url=https://stats.example.org
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.release=${VERSION}" -o /out/sluice ./cmd/sluice && mkdir -m 700 /out/data

# Nothing but the binary, which holds its time zones, and the authorities that it
# trusts when it calls Matomo. Nothing is written outside of /data: the root may be
# mounted read-only.
FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build --chown=65532:65532 /out/data /data
COPY --from=build /out/sluice /sluice
USER 65532:65532
ENV SLUICE_DATA_DIR=/data SLUICE_LOG_FORMAT=json
VOLUME /data
EXPOSE 8443
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["/sluice", "healthcheck"]
ENTRYPOINT ["/sluice"]
CMD ["serve"]
