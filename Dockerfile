# syntax=docker/dockerfile:1
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=docker
RUN make static VERSION=$VERSION && mkdir -p /out/data

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /src/bin/slipstream /slipstream
COPY --from=build --chown=65532:65532 /out/data /data
USER 65532:65532
ENV SLIPSTREAM_DATA_DIR=/data
VOLUME /data
EXPOSE 6008 6009
HEALTHCHECK --interval=30s --timeout=6s --start-period=20s CMD ["/slipstream", "health"]
ENTRYPOINT ["/slipstream"]
CMD ["serve"]
