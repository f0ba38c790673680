# The exact evaluation: one sample, unit by unit, Float64 in the log domain. It redoes samples that underflow in the tiles, and
# it is the reference that the tests hold the tiles to.

"log value of every unit for sample `n` of `X`, in nats (without a soft evidence's offset)."
function log_values(c::Circuit, X::Data, n::Integer)
    out = Vector{Float64}(undef, num_units(c))
    for u in 1:num_units(c)
        out[u] = if isinput(c.kind[u])
            log_input(c, u, X, n)
        elseif c.kind[u] == PRODUCT
            sum(out[v] for v in children(c, u))
        else
            top = maximum(out[v] for v in children(c, u))
            isfinite(top) ? top + log(sum(c.weight[e] * exp(out[c.child[e]] - top) for e in edges(c, u))) : -Inf
        end
    end
    return out
end

log_input(c, u, X::Masked, n) = X.mask[c.variable[u], n] ? 0.0 : log_input(c, u, X.values, n)

log_input(c, u, X::AbstractMatrix, n) = log(Float64(c.leaf[c.param_start[u] + X[c.variable[u], n] * c.param_stride[u]]))

log_input(c, u, X::SoftEvidence, n) =
    log(sum(Float64(c.leaf[c.param_start[u] + k * c.param_stride[u]]) * X.likelihood[k + 1, c.variable[u], n]
            for k in 0:c.categories[u] - 1))

"""
Adds the flows of sample `n` to `stat`, exactly, and returns log p(x | head) (without a soft evidence's offset). A sample of
probability zero has no flow.
"""
function add_exact_flows!(stat::Statistics, c::Circuit, X::Data, n::Integer, head::Integer, sample_weight::Real)
    value = log_values(c, X, n)
    flow = zeros(num_units(c))
    flow[c.heads[head]] = sample_weight
    isfinite(value[c.heads[head]]) || return -Inf
    for u in reverse(1:num_units(c))
        flow[u] > 0 || continue
        if isinput(c.kind[u])
            add_input_flow!(stat, c, u, X, n, flow[u])
        else
            for e in edges(c, u)
                v = c.child[e]
                if c.kind[u] == PRODUCT
                    flow[v] += flow[u]
                else
                    ratio = exp(value[v] - value[u]) * flow[u]
                    stat.weight[e] += ratio
                    flow[v] += c.weight[e] * ratio
                end
            end
        end
    end
    return value[c.heads[head]]
end

add_input_flow!(stat, c, u, X::AbstractMatrix, n, flow) =
    (stat.leaf[c.param_start[u] + X[c.variable[u], n] * c.param_stride[u]] += flow)

add_input_flow!(stat, c, u, X::Masked, n, flow) =
    X.mask[c.variable[u], n] || add_input_flow!(stat, c, u, X.values, n, flow)

function add_input_flow!(stat, c, u, X::SoftEvidence, n, flow)
    total = exp(log_input(c, u, X, n))
    for k in 0:c.categories[u] - 1
        e = c.param_start[u] + k * c.param_stride[u]
        stat.leaf[e] += flow * c.leaf[e] * X.likelihood[k + 1, c.variable[u], n] / total
    end
end
